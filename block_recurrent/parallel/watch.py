"""Notices processes that are frozen or have ended, or that wait much longer for data than others.

Every few seconds each process sends a message to the coordination service: a count, and how far it
is. It reads the messages of the others there. Process 0 runs the service. If process 0 ends, no
messages arrive.
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
    """The last message of another process, and for how many seconds it has not changed."""

    pulse: int = -1
    progress: int = 0
    silent: int = 0
    stayed: int = 0


class Watch:
    """The view that one process has of the others.

    This process counts the seconds itself. While it is frozen, no other process seems silent.

    Args:
      index: of this process.
      count: how many processes there are.
      messages: returns the key-value store of the coordination service, or None when the processes
        have parted.
      on_timeout: called in a thread, with the reason, when another process times out.
    """

    def __init__(
        self,
        index: int,
        count: int,
        messages: Callable[[], Any],
        on_timeout: Callable[[str], None],
    ):
        self._index, self._messages, self._on_timeout = index, messages, on_timeout
        self._pulses = itertools.count()
        self._progress = 0  # odd within a turn
        self._received: dict[str, str] = {}
        self._others = {other: _Other() for other in range(count) if other != index}

    def start(self) -> None:
        """Watches in background threads, until the processes part."""
        for work in (self._keep_sending, self._keep_checking):
            threading.Thread(target=work, daemon=True).start()

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """A context for work that takes equally long in all processes.

        A process times out if it stays in a turn long after another process has ended that turn.

        Args:
          number: grows from turn to turn, and is the same in all processes.
        """
        self._progress = 2 * number + 1
        yield
        self._progress = 2 * number + 2

    def send(self) -> None:
        """Sends this process's message, reads those of the others, and waits for process 0.

        Raises:
          RuntimeError: process 0 cannot be reached.
        """
        pulse = f"{next(self._pulses)} {self._progress}"
        self._messages().key_value_set(f"{_PULSES}{self._index}", pulse, allow_overwrite=True)
        self._received = dict(self._messages().key_value_dir_get(_PULSES))

    def check(self) -> str | None:
        """Checks the last messages; call it once a second. Returns why a process times out."""
        for index, other in self._others.items():
            message = self._received.get(f"{_PULSES}{index}", "-1 0")
            pulse, progress = map(int, message.split())
            behind = progress % 2 == 1 and progress < self._progress
            other.silent = other.silent + 1 if pulse == other.pulse else 0
            other.stayed = other.stayed + 1 if behind and progress == other.progress else 0
            other.pulse, other.progress = pulse, progress
            if other.silent >= PATIENCE_SECONDS:
                return f"process {index} has been silent for {other.silent} s"
            if other.stayed >= PATIENCE_SECONDS:
                return f"process {index} has waited {other.stayed} s longer for its data"
        return None

    def _keep_sending(self) -> None:
        while self._messages():
            with contextlib.suppress(RuntimeError, AttributeError):  # the other thread notices
                self.send()
            time.sleep(PULSE_SECONDS)

    def _keep_checking(self) -> None:
        while self._messages():
            if why := self.check():
                self._on_timeout(why)
            time.sleep(1)
