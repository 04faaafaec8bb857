"""Makes a corpus of raw data: a directory that `data.source = "tfds"` reads, with a manifest.

    block-recurrent prepare-data pg19 /data/pg19 --output=corpora/pg19
    block-recurrent prepare-data pg19 --download=/data/pg19 --output=corpora/pg19
    block-recurrent prepare-data latex /data/arxiv --output=corpora/arxiv
    block-recurrent prepare-data git /data/repositories --output=corpora/github
    block-recurrent prepare-data text /data/books --output=corpora/books
    block-recurrent prepare-data huggingface /data/pg19 --output=corpora/pg19

The corpus grows in DIR.partial and is renamed to DIR when it is complete. After SIGINT (Ctrl-C),
SIGTERM, a crash or a full disk, the same command continues: it keeps finished splits and writes the
others from their start. The result has the same bytes as that of a run that was not stopped.
`block-recurrent prepare-data KIND --help` shows the options of a kind of data.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.config import Download
from block_recurrent.data import DataError
from block_recurrent.data.huggingface import HubDataset
from block_recurrent.data.records import Columns
from block_recurrent.data.text_files import KINDS, Reading
from block_recurrent.lab.corpora.copies import SIMILARITY, WORDS
from block_recurrent.lab.corpora.corpus_files import summary
from block_recurrent.lab.corpora.corpus_writer import (
    Progress,
    check_options,
    check_target,
    prepare,
)
from block_recurrent.lab.corpora.latex import LatexBundles
from block_recurrent.lab.corpora.pg19 import PG19, download
from block_recurrent.lab.corpora.repositories import EXTENSIONS, Repositories
from block_recurrent.lab.corpora.text import Texts
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import Stopped, StopRequest, stop_on_signal

_REPORT_SECONDS = 0.1


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = _parse(argv)
    with stop_on_signal() as stop:
        display = _Display(stop)
        try:
            check_target(arguments.output, overwrite=arguments.overwrite)
            if arguments.download is not None:
                download(arguments.download, report=display.downloading)
                display.end()
            manifest = prepare(
                arguments.make_source(arguments),
                arguments.output,
                name=arguments.name,
                validation_percent=arguments.validation_percent,
                test_percent=arguments.test_percent,
                limit=arguments.limit,
                skip_damaged=arguments.skip_damaged,
                deduplicate=arguments.deduplicate,
                overwrite=arguments.overwrite,
                report=display.preparing,
            )
        except (DataError, Stopped):
            if stop.signal is None:
                raise
            # Ctrl-C also reaches the programs that a source has started, which then fail
            display.end()
            print(f"stopped by {stop.signal}; the same command continues", file=sys.stderr)
            raise Stopped(stop.signal) from None
        finally:
            display.end()
    print(
        f"{summary(manifest)}\nwritten to {arguments.output}; to train on it:\n"
        f"  block-recurrent train --gin_file=FILE --gin.data.source=tfds "
        f"--gin.data.path={arguments.output} --workdir=DIR"
    )
    return 0


def _pg19(parser: argparse.ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    where = "directory with train/*.txt, validation/*.txt, test/*.txt and metadata.csv"
    add("path", nargs="?", type=Path, metavar="PATH", help=where)
    more = "get the published directory first, about 11 GB; what is there already is kept"
    add("--download", type=Path, metavar="PATH", help=more)
    counts = "the numbers of books need not be the published 28602, 50 and 100"
    parser.add_argument("--partial", action="store_true", help=counts)
    parser.set_defaults(
        make_source=lambda given: PG19(
            given.path or given.download, expect_counts=not given.partial
        )
    )


def _latex(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    where = "directory of .tar.gz, .gz, or unpacked papers, or of arXiv's bulk .tar files of them"
    add("path", type=Path, metavar="PATH", help=where)
    records = "arXiv's metadata snapshot as JSON lines, for titles, years and categories"
    add("--metadata", type=Path, metavar="FILE", help=records)
    keep = "keep papers with a category that begins so, joined by commas: math.,cs.LG"
    add("--categories", type=_comma_separated, default=(), metavar="NAMES", help=keep)
    parser.set_defaults(
        make_source=lambda given: LatexBundles(
            given.path, metadata=given.metadata, categories=given.categories
        )
    )


def _git(parser: argparse.ArgumentParser) -> None:
    where = "a repository, or a directory of repositories"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=where)
    ends = f"how the files that are read end, joined by commas ({','.join(EXTENSIONS)})"
    parser.add_argument(
        "--extensions", type=_comma_separated, default=EXTENSIONS, metavar="ENDS", help=ends
    )
    parser.set_defaults(
        make_source=lambda given: Repositories(given.paths, extensions=given.extensions)
    )


def _text(parser: argparse.ArgumentParser) -> None:
    where = f"directories, read with all below, and files: {KINDS}"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=where)
    _add_columns(parser)
    shares = "cut every text file at these shares of its bytes: train,validation,test"
    parser.add_argument("--split_bytes", type=_whole_numbers, metavar="90,5,5", help=shares)
    start = "a line of a text file that matches begins a document"
    parser.add_argument("--document_start", metavar="REGEX", help=start)
    parser.set_defaults(
        make_source=lambda given: Texts(
            given.paths,
            Reading(_columns(given), given.split_by, given.split_bytes, given.document_start),
        )
    )


def _huggingface(parser: argparse.ArgumentParser) -> None:
    where = "a folder, or a name on the hub, where a configuration may follow a colon"
    parser.add_argument("path", metavar="PATH_OR_NAME", help=where)
    _add_columns(parser)
    what = (
        "what is downloaded of a name: nothing, all of it into the cache, or rows as they are read"
    )
    parser.add_argument(
        "--download", dest="of_a_name", choices=get_args(Download), default="never", help=what
    )
    parser.set_defaults(
        make_source=lambda given: Texts(
            HubDataset(given.path, _columns(given), given.split_by, given.of_a_name),
            Reading(_columns(given), given.split_by),
        )
    )


def _add_columns(parser: argparse.ArgumentParser) -> None:
    for field in Columns._fields:
        what = f"what the {field} of a record is called; published layouts are known"
        parser.add_argument(f"--{field}_column", metavar="NAME", help=what)
    by = "whether names of splits, files and folders (train, valid, ...) tell the split (names)"
    parser.add_argument("--split_by", choices=("names", "hash"), default="names", help=by)


def _columns(given: argparse.Namespace) -> Columns:
    return Columns(given.id_column, given.text_column, given.title_column)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


# Kind of raw data -> what it is, and what adds its options and `make_source` to a parser.
_KINDS = {
    "pg19": ("PG-19, in its published splits", _pg19),
    "latex": ("source bundles from arXiv, a paper a document", _latex),
    "git": ("source code, a repository a document", _git),
    "text": ("any text, a file or a record a document", _text),
    "huggingface": ("a data set of Hugging Face, a row a document", _huggingface),
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, (what, add_options) in _KINDS.items():
        kind = kinds.add_parser(name, help=what, description=what)
        kind.set_defaults(parser=kind, download=None)
        add_options(kind)
        add = kind.add_argument_group("corpus").add_argument
        target = "the corpus, which must not exist"
        add("--output", required=True, type=Path, metavar="DIR", help=target)
        for split in ("validation", "test"):
            share = f"share of the documents for {split} where the data has no splits (1)"
            add(f"--{split}_percent", type=int, default=1, metavar="N", help=share)
        add("--limit", type=int, metavar="N", help="at most N documents of each split, for a trial")
        add("--name", help="of the corpus (by default that of the kind of data)")
        damaged = "drop and count what is damaged instead of stopping; of a file of many documents "
        damaged += "those before the damage are kept"
        add("--skip_damaged", action="store_true", help=damaged)
        again = "drop and count exact and near copies (of all runs of "
        again += f"{WORDS} words, a share of {SIMILARITY} is the same); held-out documents stay"
        add("--deduplicate", action="store_true", help=again)
        add("--overwrite", action="store_true", help="replace the corpus that is at DIR already")
    arguments = parser.parse_args(argv)
    try:
        check_options(
            arguments.name, arguments.validation_percent, arguments.test_percent, arguments.limit
        )
    except DataError as error:
        arguments.parser.error(str(error))
    return arguments


class _Display:
    """Shows the progress on one line, and stops the work if a signal has asked for it."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._line, self._shown, self._text = ProgressLine(), 0.0, ""
        self._first: tuple[float, Progress] | None = None

    def downloading(self, done: int, total: int) -> None:
        """Shows how many files are downloaded."""
        self._show(f"downloading: {done:,} of {total:,} files", last=done == total)

    def preparing(self, progress: Progress) -> None:
        """Shows how many documents are listed, then how far a split is written."""
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
        self._stop.check()

    def end(self) -> None:
        """Ends the line with the last text."""
        if self._text:
            self._line.end(self._text)
        self._text = ""
