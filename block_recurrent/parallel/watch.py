"""Notices a process that is frozen or gone, or that stays where the others have passed.

Each process tells the coordination service every few seconds that it lives and where it is, and
asks what the others have told. Process 0 has that service: without it nobody is heard any more.
"""

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PULSE_SECONDS = 5  # between two tellings
PATIENCE_SECONDS = 40  # until a process is given up; JAX waits for 100 s, and then aborts
_PULSES = "block_recurrent/pulses/"


@dataclasses.dataclass
class _Other:
    """What was last heard of another process, and for how many seconds there was nothing new."""

    pulse: int = -1
    place: int = 0
    silent: int = 0
    stayed: int = 0

    def hear(self, pulse: int, place: int, passed: bool) -> None:
        """Takes note of what is known after one more second; `passed`: this process is farther."""
        self.silent = self.silent + 1 if pulse == self.pulse else 0
        self.stayed = self.stayed + 1 if passed and place == self.place else 0
        self.pulse, self.place = pulse, place


class Watch:
    """What one process knows of the others.

    Seconds are counted by this process: time in which it stood still itself is nobody's silence.

    Args:
      index: of this process.
      count: of all processes.
      messages: the store of the coordination service, or None when the processes have parted.
      give_up: called in a thread, with a sentence, when another process has to be given up.
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
        self._place = 0  # odd within a turn
        self._told: dict[str, str] = {}
        self._others = {other: _Other() for other in range(count) if other != index}

    def start(self) -> None:
        """Watches in the background, until the processes part."""
        for work in (self._keep_telling, self._keep_looking):
            threading.Thread(target=work, daemon=True).start()

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Within it, a process is given up that stays while others have ended the same turn.

        It is for what takes all processes about as long.

        Args:
          number: grows from turn to turn, and is that of the same turn in all processes.
        """
        self._place = 2 * number + 1
        yield
        self._place = 2 * number + 2

    def tell(self) -> None:
        """Tells the others that this process lives; waits as long as process 0 does not answer.

        Raises:
          RuntimeError: process 0 cannot be reached.
        """
        pulse = f"{next(self._pulses)} {self._place}"
        self._messages().key_value_set(f"{_PULSES}{self._index}", pulse, allow_overwrite=True)
        self._told = dict(self._messages().key_value_dir_get(_PULSES))

    def look(self) -> str | None:
        """Looks, once a second, at what was told. Returns why one is to be given up, if so."""
        for index, other in self._others.items():
            told = self._told.get(f"{_PULSES}{index}", "-1 0")
            pulse, place = map(int, told.split())
            other.hear(pulse, place, passed=place % 2 == 1 and self._place > place)
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
