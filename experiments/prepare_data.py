"""Makes a corpus of raw data: a directory that `data.source = "tfds"` reads, with a manifest.

    python experiments/prepare_data.py pg19 /data/pg19 --output=corpora/pg19
    python experiments/prepare_data.py pg19 --download=/data/pg19 --output=corpora/pg19
    python experiments/prepare_data.py latex /data/arxiv --output=corpora/arxiv
    python experiments/prepare_data.py git /data/repositories --output=corpora/github
    python experiments/prepare_data.py text /data/books --output=corpora/books

The corpus grows in DIR.partial and is renamed to DIR when it is complete. After SIGINT (Ctrl-C),
SIGTERM, a crash or a full disk, the same command goes on where it was, to the same bytes.
`prepare_data.py KIND --help` tells the options of a kind of data.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import errors
from block_recurrent.data import DataError
from block_recurrent.preparation.corpus_writer import (
    Interrupted,
    Progress,
    check_options,
    check_target,
    prepare,
)
from block_recurrent.preparation.manifest import summary
from block_recurrent.preparation.pg19 import download
from block_recurrent.training.progress import ProgressLine, duration
from block_recurrent.training.signals import StopRequest, stop_on_signal
from options import Parser
from raw_data import KINDS

_REPORT_SECONDS = 0.1


class Display:
    """Shows on one line how far it is."""

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


def make_parser() -> argparse.ArgumentParser:
    """The program's command line."""
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, kind in KINDS.items():
        options = kinds.add_parser(name, help=kind.help, description=kind.help)
        kind.add_options(options)
        _add_common(options)
        options.set_defaults(make_source=kind.make_source, parser=options, download=None)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("corpus")
    group.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the corpus, which must not exist"
    )
    for split in ("validation", "test"):
        group.add_argument(
            f"--{split}_percent",
            type=int,
            default=1,
            metavar="N",
            help=f"share of the documents for {split} where the data has no splits (1)",
        )
    group.add_argument(
        "--limit", type=int, metavar="N", help="at most N documents of each split, for trying out"
    )
    group.add_argument("--name", help="of the corpus (by default that of the kind of data)")
    group.add_argument(
        "--restart", action="store_true", help="throw away what an earlier call left unfinished"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace the corpus that is at DIR already"
    )


def run(arguments: argparse.Namespace, display: Display, request: StopRequest) -> dict[str, Any]:
    """Makes the corpus and returns its manifest.

    Raises:
      DataError: for data or a directory that cannot be used.
      Interrupted: if a signal asked for it.
    """
    check_target(arguments.output, overwrite=arguments.overwrite)
    if arguments.download is not None:
        arguments.path = arguments.download
        report, stop = display.downloading, lambda: request.signal
        if not download(arguments.path, report=report, stop=stop):
            raise Interrupted
        display.end()
    source = arguments.make_source(arguments)
    try:
        return prepare(
            source,
            arguments.output,
            name=arguments.name,
            validation_percent=arguments.validation_percent,
            test_percent=arguments.test_percent,
            limit=arguments.limit,
            restart=arguments.restart,
            overwrite=arguments.overwrite,
            report=display.writing,
            stop=lambda: request.signal,
        )
    except DataError as error:
        if request.signal:  # Ctrl-C also reaches the programs that a source has started
            raise Interrupted from error
        raise


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = make_parser().parse_args(argv)
    parser, display = arguments.parser, Display()
    try:
        check_options(
            arguments.name, arguments.validation_percent, arguments.test_percent, arguments.limit
        )
    except DataError as error:
        parser.error(str(error))
    with stop_on_signal() as request:
        try:
            manifest = run(arguments, display, request)
        except (Interrupted, KeyboardInterrupt):
            name = request.signal or "SIGINT"
            display.end()
            print(f"stopped by {name}; the same command goes on from here", file=sys.stderr)
            return 128 + signal.Signals[name]
        finally:
            display.end()
    print(f"{summary(manifest)}\nwritten to {arguments.output}; to train on it:")
    print(
        f"  python experiments/train.py --gin_file=FILE --gin.data.source=tfds "
        f"--gin.data.path={arguments.output} --workdir=DIR"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
