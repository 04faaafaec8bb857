"""Where the time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from block_recurrent.system.progress import duration


class Stopwatch:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time within the context to a part."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def shares(self) -> dict[str, float]:
        """Each part's share of all seconds, largest first."""
        total = max(sum(self.seconds.values()), 1e-9)
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {name: seconds / total for name, seconds in ordered}

    def describe(self) -> str:
        """The time in all and the shares, for people."""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
        return f"{duration(sum(self.seconds.values()))} in all: {shares}"
