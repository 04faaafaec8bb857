"""How far a preparation is, on one line of the screen."""

import time

from block_recurrent.lab.corpora.passes import Progress
from block_recurrent.system.progress import ProgressLine, duration

_REPORT_SECONDS = 0.1


class Display:
    """Shows on one line how far a download or a preparation is."""

    def __init__(self) -> None:
        self._line = ProgressLine()
        self._last = 0.0
        self._text = ""

    def writing(self, progress: Progress) -> None:
        """Shows the progress of `prepare`."""
        if not self._is_due(progress.documents == progress.total):
            return
        if not progress.split:
            return self._show(f"documents listed: {progress.documents:,}")
        seconds = max(progress.seconds, 1e-3)
        left = (progress.total - progress.documents) * seconds / max(progress.new_documents, 1)
        self._show(
            f"{progress.split}: {progress.documents:,} of {progress.total:,} documents, "
            f"{megabytes(progress.bytes)}, {megabytes(progress.new_bytes / seconds)}/s, "
            f"{duration(left)} left"
        )

    def downloading(self, done: int, total: int) -> None:
        """Shows the progress of `download`."""
        if self._is_due(done == total):
            self._show(f"downloading: {done:,} of {total:,} files")

    def end(self) -> None:
        """Leaves the line standing."""
        if self._text:
            self._line.end(self._text)
        self._text = ""

    def _is_due(self, last: bool) -> bool:
        return last or time.monotonic() - self._last >= _REPORT_SECONDS

    def _show(self, text: str) -> None:
        self._last, self._text = time.monotonic(), text
        self._line.show(text)


def megabytes(size: float) -> str:
    """`1234567` -> "1.2 MB"."""
    return f"{size / 1e6:,.1f} MB"
