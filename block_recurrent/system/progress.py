"""Progress on the screen, of one piece of work or several; how a run's time divides into parts."""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO


def duration(seconds: float) -> str:
    """`93` -> "1m 33s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


class Stopwatch:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
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
        """The total time and the shares, as text."""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
        return f"{duration(sum(self.seconds.values()))} in all: {shares}"


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints a line at most every ten seconds.

    Args:
      stream: standard error unless given, which may be closed.
      quiet: write nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self._stream = stream or sys.stderr or io.StringIO()
        self._quiet = quiet or not (stream or sys.stderr)
        self._terminal = self._stream.isatty()
        self._last = 0.0
        self._width = 0
        self._begins: dict[str, float | None] = {}  # of compilations; None after the first run

    def show(self, text: str, *, always: bool = False) -> None:
        """Replaces the line by `text`; off a terminal only every ten seconds, unless `always`."""
        now = time.monotonic()
        if self._quiet or not (self._terminal or always or now - self._last >= 10):
            return
        self._last = now
        if self._terminal:
            _write(self._stream, "\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            _write(self._stream, text + "\n")

    def end(self, text: str = "") -> None:
        """Ends the line, after replacing it by `text` if that is given."""
        if text:
            self.show(text, always=True)
        if self._terminal and not self._quiet:
            _write(self._stream, "\n")
        self._width = 0

    def compiling(self, what: str) -> None:
        """Says that `what`, such as "the step", is being compiled, before its first run only."""
        if what not in self._begins:
            self._begins[what] = time.monotonic()
            self.show(f"compiling {what} ...", always=True)

    def compiled(self, what: str) -> None:
        """Says after the first run of `what` how long that and its compilation took."""
        if (begin := self._begins.get(what)) is not None:
            self._begins[what] = None
            self.end(f"compiled {what} and ran it once: {duration(time.monotonic() - begin)}")


class ProgressBoard:
    """A line for each of several pieces of work, rewritten on a terminal.

    Elsewhere it prints what has ended, and once a minute what is in progress.

    Args:
      names: of the pieces of work.
      stream: standard error unless given, which may be closed.
    """

    def __init__(self, names: Sequence[str], stream: TextIO | None = None):
        self._stream = stream or sys.stderr or io.StringIO()
        self._terminal = self._stream.isatty()
        self._lines = dict.fromkeys(names, "")
        self._ended: set[str] = set()
        self._last = time.monotonic()
        self._below = ""
        self._drawn = 0

    def show(self, name: str, text: str) -> None:
        """Says how far a piece of work is."""
        self._lines[name] = text
        now = time.monotonic()
        if self._terminal:
            self._draw()
        elif now - self._last >= 60:
            self._last = now
            self.say(f"{len(self._ended)} of {len(self._lines)} done{self._below}")
            for other, line in self._lines.items():
                if line and other not in self._ended:
                    self.say(f"  {other}: {line}")

    def end(self, name: str, text: str, left: str = "") -> None:
        """Says how a piece of work has ended.

        Args:
          name: the piece of work.
          text: its result.
          left: how long the others will take, as text; empty if nothing is left.
        """
        self._lines[name] = text
        self._ended.add(name)
        self._below = f", about {left} left" if left else ""
        if self._terminal:
            self._draw()
        else:
            self.say(f"{name}: {text}{self._below}")

    def say(self, text: str) -> None:
        """Prints a line that stays, above the others."""
        self._erase()
        _write(self._stream, text + "\n")
        if self._terminal:
            self._draw()

    def _draw(self) -> None:
        self._erase()
        width = max(map(len, self._lines))
        lines = [f"{name:{width}}  {line or '.'}" for name, line in self._lines.items()]
        lines.append(f"{len(self._ended)} of {len(self._lines)} done{self._below}")
        room = shutil.get_terminal_size().columns - 1
        _write(self._stream, "".join(line[:room] + "\n" for line in lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            _write(self._stream, f"\x1b[{self._drawn}A\x1b[J")  # to the first line; all below it
        self._drawn = 0


def _write(stream: TextIO, text: str) -> None:
    # The work continues when the terminal, or the program that reads this, has ended.
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()
