"""Programs run side by side: each a process of its own that stops when this one is asked to."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from block_recurrent.system.signals import StopRequest

PARENT = "BLOCK_RECURRENT_PARENT"  # environment variable: the process that a child stops with
POLL_SECONDS = 0.2


class Ended(NamedTuple):
    """A child that has ended.

    Attributes:
      name: of the child.
      status: its exit status; negative, the number of the signal that ended it.
    """

    name: str
    status: int


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    stop: StopRequest,
    hear: Callable[[str, str], object],
) -> Iterator[Ended]:
    """Runs programs, some at once, and yields each as it ends.

    When a stop is requested no other begins, and those that run are sent the signal. They are in
    sessions of their own, so that what a terminal sends reaches them once, from here. When the
    iterator is closed before its end, they are sent SIGTERM and waited for.

    Args:
      commands: by name, in the order in which they begin.
      at_once: how many run at a time.
      stop: asked to stop.
      hear: called with a child's name and each line that it writes.
    """
    waiting, running = list(commands), {}
    said: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    told = False
    try:
        while running or (waiting and stop.signal is None):
            while waiting and len(running) < at_once and stop.signal is None:
                name = waiting.pop(0)
                running[name] = _start(name, commands[name], said)
            if stop.signal is not None and not told:
                _send(running.values(), signal.Signals[stop.signal])
                told = True
            for name, text in _heard(said):
                if text is None:
                    yield Ended(name, running.pop(name).wait())
                else:
                    hear(name, text)
    finally:
        _send(running.values(), signal.SIGTERM)
        for child in running.values():
            child.wait()


def _start(
    name: str, command: Sequence[str], said: "queue.SimpleQueue[tuple[str, str | None]]"
) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {PARENT: str(os.getpid())},
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert child.stdout is not None
        with child.stdout as output:
            for text in output:
                said.put((name, text.rstrip("\n")))
        said.put((name, None))

    threading.Thread(target=read, daemon=True, name=name).start()
    return child


def _heard(said: "queue.SimpleQueue[tuple[str, str | None]]") -> Iterator[tuple[str, str | None]]:
    """What has been said, after waiting a moment for the first of it."""
    try:
        yield said.get(timeout=POLL_SECONDS)
        while True:
            yield said.get_nowait()
    except queue.Empty:
        return


def _send(children: Iterable[subprocess.Popen[str]], number: signal.Signals) -> None:
    for child in children:
        child.send_signal(number)


def stop_with_parent() -> None:
    """Where this process is a child, sends it SIGTERM when its parent is no more."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()
