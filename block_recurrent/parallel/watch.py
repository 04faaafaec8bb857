"""Notices a process that is frozen or gone, or that stays in a turn that the others have ended.

Every few seconds each process tells the coordination service that it is alive and how far it is,
and reads what the others have told. Process 0 runs that service: without it no process is heard.
"""

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PULSE_SECONDS = 5  # between two messages
PATIENCE_SECONDS = 40  # until a process times out; JAX would wait for 100 s and then abort
_PULSES = "block_recurrent/pulses/"


@dataclasses.dataclass
class _Other:
    """The last message of another process, and for how many seconds there was nothing new."""

    pulse: int = -1
    progress: int = 0
    silent: int = 0
    stayed: int = 0

    def hear(self, pulse: int, progress: int, passed: bool) -> None:
        """Notes the last message after one more second; `passed`: this process is ahead."""
        self.silent = self.silent + 1 if pulse == self.pulse else 0
        self.stayed = self.stayed + 1 if passed and progress == self.progress else 0
        self.pulse, self.progress = pulse, progress


class Watch:
    """What one process knows of the others.

    This process counts the seconds itself. While it is frozen, no other process seems silent.

    Args:
      index: of this process.
      count: how many processes there are.
      messages: the store of the coordination service, or None when the processes have parted.
      give_up: called in a thread, with the reason, when another process times out.
    """

    def __init__(
        self,
        index: int,
        count: int,
        messages: Callable[[], Any],
        give_up: Callable[[str], None],
    ):
        self._index, self._messages, self._give_up = index, messages, give_up
        self._pulses = itertools.count()
        self._progress = 0  # odd within a turn
        self._told: dict[str, str] = {}
        self._others = {other: _Other() for other in range(count) if other != index}

    def start(self) -> None:
        """Watches in the background, until the processes part."""
        for work in (self._keep_telling, self._keep_looking):
            threading.Thread(target=work, daemon=True).start()

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Within it, a process times out that stays while others have ended the same turn.

        It is for work that takes all processes about as long.

        Args:
          number: grows from turn to turn; the same turn has the same number in all processes.
        """
        self._progress = 2 * number + 1
        yield
        self._progress = 2 * number + 2

    def tell(self) -> None:
        """Tells the others that this process is alive; waits until process 0 answers.

        Raises:
          RuntimeError: process 0 cannot be reached.
        """
        pulse = f"{next(self._pulses)} {self._progress}"
        self._messages().key_value_set(f"{_PULSES}{self._index}", pulse, allow_overwrite=True)
        self._told = dict(self._messages().key_value_dir_get(_PULSES))

    def look(self) -> str | None:
        """Checks the last messages, once a second. Returns why a process times out, or None."""
        for index, other in self._others.items():
            told = self._told.get(f"{_PULSES}{index}", "-1 0")
            pulse, progress = map(int, told.split())
            other.hear(pulse, progress, passed=progress % 2 == 1 and self._progress > progress)
            if other.silent >= PATIENCE_SECONDS:
                return f"process {index} has not been heard of for {other.silent} s"
            if other.stayed >= PATIENCE_SECONDS:
                return f"process {index} has waited for its data for {other.stayed} s longer"
        return None

    def _keep_telling(self) -> None:
        while self._messages():
            with contextlib.suppress(RuntimeError, AttributeError):  # as the other thread will see
                self.tell()
            time.sleep(PULSE_SECONDS)

    def _keep_looking(self) -> None:
        while self._messages():
            why = self.look()
            if why:
                self._give_up(why)
            time.sleep(1)
