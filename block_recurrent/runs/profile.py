"""A profile of some steps of a run, by JAX's profiler."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from block_recurrent.parallel import processes

PROFILE = "profile"


class Profile:
    """Profiles steps of a run, in the first process alone.

    Args:
      workdir: the run's directory. The profile is written to its folder `profile`.
      steps: the steps to profile, counted from 1.
      say: called with a line for people when the profile is written, or could not be.
    """

    def __init__(self, workdir: Path, steps: range, say: Callable[[str], None]):
        self._folder, self._say = workdir / PROFILE, say
        self._steps = steps if processes.is_primary() else range(0)
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int, wait: Callable[[], object]) -> Iterator[None]:
        """Profiles what is done within the context if the step of this number is to be profiled.

        Args:
          number: of the step, counted from 1.
          wait: waits until the devices have done all of it.
        """
        if number not in self._steps:
            yield
            return
        if not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._steps[-1]:
            wait()
            self.close()

    def close(self) -> None:
        """Writes the profile if there is one that is not written yet."""
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            self._say(f"WARNING: the profile could not be written to {self._folder} ({error})")
        else:
            self._say(f"a profile of training steps is in {self._folder}")
