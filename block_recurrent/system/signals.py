"""Stopping politely: the first SIGINT, SIGTERM or SIGHUP asks, the second ends the process at once.

Signals are taken by a thread of their own, so that they are noticed at once even while the main
thread compiles for minutes.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_WORDS_SECONDS = 0.5
_END = b"\0"


class Stopped(Exception):
    """A signal ended the work.

    Attributes:
      signal: its name.
      exit_status: what the process should end with, 128 and the signal's number.
    """

    def __init__(self, name: str, what: str = ""):
        super().__init__(f"stopped by {name}{what}")
        self.signal = name
        self.exit_status = 128 + signal.Signals[name].value


class StopRequest:
    """Whether a signal has asked the work to stop.

    Attributes:
      signal: the signal's name, or None.
      nothing_to_save: the first signal may end the process at once, wherever it is.
    """

    def __init__(self, *, nothing_to_save: bool = False):
        self.signal: str | None = None
        self.nothing_to_save = nothing_to_save

    def check(self, what: str = "") -> None:
        """Raises Stopped, its message ending in `what`, if a signal has come."""
        if self.signal is not None:
            raise Stopped(self.signal, what)

    def note(self, number: int) -> None:
        """Takes a first signal."""
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def stop_on_signal(*, nothing_to_save: bool = False) -> Iterator[StopRequest]:
    """Within the context, signals make requests.

    A SIGHUP that the process ignores, as below nohup, stays ignored.

    Args:
      nothing_to_save: the request's attribute, which may be changed at any time.

    Raises:
      ValueError: this is not the main thread.
    """
    request = StopRequest(nothing_to_save=nothing_to_save)
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    taken = [n for n in SIGNALS if not (n == signal.SIGHUP and hangup_ignored)]
    before = {number: signal.signal(number, lambda n, _: request.note(n)) for number in taken}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(reader, request), daemon=True, name="signals")
    thread.start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, _END)
        thread.join()
        os.close(writer)
        os.close(reader)


def _watch(reader: int, request: StopRequest) -> None:
    first = True
    while (taken := os.read(reader, 1)) != _END:
        if taken[0] in SIGNALS:
            request.note(taken[0])
            if request.nothing_to_save or not first:
                _leave(taken[0], "there was nothing to save" if first else "by a second signal")
            first = False


def _leave(number: int, why: str) -> None:
    """Ends the process, whatever the main thread is doing and whoever reads its output."""
    text = f"\nstopped at once by {signal.Signals(number).name}: {why}\n"
    saying = threading.Thread(target=_say, args=(text,), daemon=True)
    saying.start()
    saying.join(LAST_WORDS_SECONDS)
    os._exit(128 + number)


def _say(text: str) -> None:
    """Writes `text` after what has been printed; blocks where nobody reads that."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # else that descriptor may be of something else
            os.write(2, text.encode())
    with contextlib.suppress(OSError):
        sys.stdout.flush()
