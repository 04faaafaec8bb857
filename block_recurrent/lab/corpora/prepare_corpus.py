"""Preparing a corpus as the command line of `prepare_data.py` says, with progress on the screen."""

import argparse
import sys
import time
from typing import Any

from block_recurrent.data import DataError
from block_recurrent.lab.corpora.corpus_files import summary
from block_recurrent.lab.corpora.corpus_writer import Interrupted, Progress, check_target, prepare
from block_recurrent.lab.corpora.pg19 import download
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import Stopped, StopRequest

_REPORT_SECONDS = 0.1


def prepare_corpus(arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Makes the corpus and prints what it holds and how to train on it.

    Args:
      arguments: what `raw_data.parse` returns.
      stop: checked after every file and document.

    Raises:
      DataError: the data or the directory cannot be used.
      Stopped: a signal asked for it, which is printed; the same command continues.
    """
    display = _Display()
    try:
        manifest = _prepare(arguments, display, stop)
    except (Interrupted, KeyboardInterrupt) as error:
        stopped = Stopped(stop.signal or "SIGINT", "; the same command continues")
        display.end()
        print(stopped, file=sys.stderr)
        raise stopped from error
    finally:
        display.end()
    print(
        f"{summary(manifest)}\nwritten to {arguments.output}; to train on it:\n"
        f"  python experiments/train.py --gin_file=FILE --gin.data.source=tfds "
        f"--gin.data.path={arguments.output} --workdir=DIR"
    )


def _prepare(
    arguments: argparse.Namespace, display: "_Display", stop: StopRequest
) -> dict[str, Any]:
    """Returns the manifest; raises Interrupted if a signal has come."""
    check_target(arguments.output, overwrite=arguments.overwrite)
    if arguments.download is not None:
        report, asked = display.downloading, lambda: stop.signal
        if not download(arguments.download, report=report, stop=asked):
            raise Interrupted
        display.end()
    try:
        return prepare(
            arguments.make_source(arguments),
            arguments.output,
            name=arguments.name,
            validation_percent=arguments.validation_percent,
            test_percent=arguments.test_percent,
            limit=arguments.limit,
            overwrite=arguments.overwrite,
            report=display.preparing,
            stop=lambda: stop.signal,
        )
    except DataError as error:
        if stop.signal:  # Ctrl-C also reaches the programs that a source has started
            raise Interrupted from error
        raise


class _Display:
    """Shows the progress of a download or a preparation on one line."""

    def __init__(self) -> None:
        self._line, self._shown, self._text = ProgressLine(), 0.0, ""
        self._first: tuple[float, Progress] | None = None

    def downloading(self, done: int, total: int) -> None:
        """Takes the progress of `download`."""
        self._show(f"downloading: {done:,} of {total:,} files", last=done == total)

    def preparing(self, progress: Progress) -> None:
        """Takes the progress of `prepare`."""
        if not progress.split:
            self._show(f"documents listed: {progress.documents:,}")
            return
        began, first = self._first = self._first or (time.monotonic(), progress)
        seconds = max(time.monotonic() - began, 1e-3)
        new, left = progress.documents - first.documents, progress.total - progress.documents
        self._show(
            f"{progress.split}: {progress.documents:,} of {progress.total:,} documents, "
            f"{progress.bytes / 1e6:,.1f} MB, "
            f"{(progress.bytes - first.bytes) / seconds / 1e6:,.1f} MB/s, "
            f"{duration(left * seconds / max(new, 1))} left",
            last=not left,
        )

    def _show(self, text: str, *, last: bool = False) -> None:
        if last or time.monotonic() - self._shown >= _REPORT_SECONDS:
            self._shown, self._text = time.monotonic(), text
            self._line.show(text)

    def end(self) -> None:
        """Ends the line with the last text."""
        if self._text:
            self._line.end(self._text)
        self._text = ""
