"""One line for people: how far, how good, how fast, how long still."""

import contextlib
import io
import sys
import time
from typing import TextIO


def duration(seconds: float) -> str:
    """`93` -> "1m 33s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints a line at most every ten seconds.

    Args:
      stream: standard error unless given, which may be closed.
      prefix: begins every line.
      quiet: write nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, prefix: str = "", quiet: bool = False):
        self._stream = stream or sys.stderr or io.StringIO()
        self._prefix = prefix
        self._quiet = quiet or not (stream or sys.stderr)
        self._terminal = self._stream.isatty()
        self._last = 0.0
        self._width = 0

    def show(self, text: str, *, always: bool = False) -> None:
        """Shows `text` in place of the line before; `always` also where lines are spaced out."""
        now = time.monotonic()
        if self._quiet or not (self._terminal or always or now - self._last >= 10):
            return
        self._last = now
        text = self._prefix + text
        if self._terminal:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._write(text + "\n")

    def end(self, text: str = "") -> None:
        """Leaves `text`, or the last line, standing and starts a new one."""
        if text:
            self.show(text, always=True)
        if self._terminal and not self._quiet:
            self._write("\n")
        self._width = 0

    def clear(self) -> None:
        """Takes the line off the terminal, for something else to be printed in its place."""
        if self._terminal and not self._quiet:
            self._write("\r" + " " * self._width + "\r")
        self._width = 0

    def _write(self, text: str) -> None:
        # Work does not end because the terminal, or the program that read this, has.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
