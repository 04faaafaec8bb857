"""Stop requests: the first SIGINT, SIGTERM or SIGHUP asks, the second ends the process at once.

A thread of its own receives the signals, so that it reacts at once even while the main thread
compiles for minutes.
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
      exit_status: with which the process should end: 128 plus the signal's number.
    """

    def __init__(self, name: str, what: str = ""):
        super().__init__(f"stopped by {name}{what}")
        self.signal = name
        self.exit_status = 128 + signal.Signals[name].value


class StopRequest:
    """Whether a signal has asked the work to stop.

    Attributes:
      signal: the signal's name, or None.
      nothing_to_save: the first signal may end the process at once.
    """

    def __init__(self, *, nothing_to_save: bool = False):
        self.signal: str | None = None
        self.nothing_to_save = nothing_to_save

    def check(self, what: str = "") -> None:
        """Raises Stopped, whose message ends in `what`, if a signal has arrived."""
        if self.signal is not None:
            raise Stopped(self.signal, what)

    def note(self, number: int) -> None:
        """Records a signal, if it is the first."""
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def stop_on_signal(*, nothing_to_save: bool = False) -> Iterator[StopRequest]:
    """Within the context, a signal becomes a stop request.

    A SIGHUP that the process already ignores, for instance under nohup, stays ignored.

    Args:
      nothing_to_save: initial value of the request's attribute, which may change at any time.

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
    """Ends the process, even if the main thread is busy or nobody reads the output."""
    text = f"\nstopped at once by {signal.Signals(number).name}: {why}\n"

    def write() -> None:  # blocks if nobody reads the output
        with contextlib.suppress(OSError):
            if sys.stderr is not None:  # otherwise descriptor 2 may belong to another file
                os.write(2, text.encode())
        with contextlib.suppress(OSError):
            sys.stdout.flush()

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(LAST_WORDS_SECONDS)
    os._exit(128 + number)
