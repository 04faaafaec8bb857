"""Stopping politely: the first SIGINT or SIGTERM asks, the second ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether a signal has asked the run to stop.

    Attributes:
      signal: the signal's name, or None.
    """

    signal: str | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the context, notes a first SIGINT or SIGTERM instead of raising."""
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        del frame
        request.signal = signal.Signals(number).name
        for name, handler in before.items():
            signal.signal(name, handler)

    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, note) for name in names}
    try:
        yield request
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
