"""The kinds of raw data that `prepare_data.py` reads: their options and their sources."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from block_recurrent.command_line.parser import Parser
from block_recurrent.data import DataError
from block_recurrent.lab.corpora.corpus_writer import check_options
from block_recurrent.lab.corpora.entries import Source
from block_recurrent.lab.corpora.latex import LatexBundles
from block_recurrent.lab.corpora.pg19 import PG19
from block_recurrent.lab.corpora.repositories import EXTENSIONS, Repositories
from block_recurrent.lab.corpora.text import TextFiles


class Kind(NamedTuple):
    """One kind of raw data.

    Attributes:
      help: what it is, for the help of the program.
      add_options: adds its options to a parser.
      make_source: returns the source that the parsed options describe. Raises DataError if there
        is no such data.
    """

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    make_source: Callable[[argparse.Namespace], Source]


def _several(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _add_pg19(parser: argparse.ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    where = "directory with train/*.txt, validation/*.txt, test/*.txt and metadata.csv"
    add("path", nargs="?", type=Path, metavar="PATH", help=where)
    more = "get the published directory first, about 11 GB; what is there already is kept"
    add("--download", type=Path, metavar="PATH", help=more)
    counts = "the numbers of books need not be the published 28602, 50 and 100"
    parser.add_argument("--partial", action="store_true", help=counts)


def _pg19(arguments: argparse.Namespace) -> Source:
    return PG19(arguments.path or arguments.download, expect_counts=not arguments.partial)


def _add_latex(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="directory of .tar.gz, .gz, or unpacked papers")
    records = "arXiv's metadata snapshot as JSON lines, for titles, years and categories"
    add("--metadata", type=Path, metavar="FILE", help=records)
    keep = "keep papers with a category that begins so, joined by commas: math.,cs.LG"
    add("--categories", type=_several, default=(), metavar="NAMES", help=keep)
    damaged = "drop damaged bundles instead of stopping"
    add("--skip_damaged", action="store_true", help=damaged)


def _latex(arguments: argparse.Namespace) -> Source:
    return LatexBundles(
        arguments.path,
        metadata=arguments.metadata,
        categories=arguments.categories,
        skip_damaged=arguments.skip_damaged,
    )


def _add_git(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    where = "a repository, or a directory of repositories"
    add("paths", nargs="+", type=Path, metavar="PATH", help=where)
    ends = f"how the files that are read end, joined by commas ({','.join(EXTENSIONS)})"
    add("--extensions", type=_several, default=EXTENSIONS, metavar="ENDS", help=ends)
    size = "leave out larger files (1000000)"
    add("--max_file_bytes", type=int, default=1_000_000, metavar="N", help=size)
    every = "every folder in PATH is a document, git repository or not"
    add("--each_child", action="store_true", help=every)
    commit = "branch, tag or hash to read in git repositories (HEAD)"
    add("--commit", default="HEAD", help=commit)


def _git(arguments: argparse.Namespace) -> Source:
    return Repositories(
        arguments.paths,
        extensions=arguments.extensions,
        max_file_bytes=arguments.max_file_bytes,
        each_child=arguments.each_child,
        commit=arguments.commit,
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    where = (
        "directories, read with all below, and files: .txt, .jsonl, .jsonl.gz, .jsonl.zst, "
        ".parquet; records in a file called train, validation or test belong to that split"
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=where)
    for field in ("id", "text", "title"):
        column = f"what the {field} of a record is called ({field})"
        parser.add_argument(f"--{field}_column", default=field, metavar="NAME", help=column)


def _text(arguments: argparse.Namespace) -> Source:
    return TextFiles(
        arguments.paths,
        id_column=arguments.id_column,
        text_column=arguments.text_column,
        title_column=arguments.title_column,
    )


KINDS = {
    "pg19": Kind("PG-19, in its published splits", _add_pg19, _pg19),
    "latex": Kind("source bundles from arXiv, a paper a document", _add_latex, _latex),
    "git": Kind("source code, a repository a document", _add_git, _git),
    "text": Kind("any text, a file or a record a document", _add_text, _text),
}


def parse(documentation: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `prepare_data.py`; exits with status 2 if they are wrong.

    `arguments.make_source(arguments)` is the source that they describe.

    Args:
      documentation: the program's docstring, shown by `--help` as it stands.
      argv: the command line; `sys.argv[1:]` if None.
    """
    parser = Parser(description=documentation)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, kind in KINDS.items():
        options = kinds.add_parser(name, help=kind.help, description=kind.help)
        kind.add_options(options)
        _add_common(options)
        options.set_defaults(make_source=kind.make_source, parser=options, download=None)
    arguments = parser.parse_args(argv)
    try:
        check_options(
            arguments.name, arguments.validation_percent, arguments.test_percent, arguments.limit
        )
    except DataError as error:
        arguments.parser.error(str(error))
    return arguments


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("corpus").add_argument
    target = "the corpus, which must not exist"
    add("--output", required=True, type=Path, metavar="DIR", help=target)
    for split in ("validation", "test"):
        share = f"share of the documents for {split} where the data has no splits (1)"
        add(f"--{split}_percent", type=int, default=1, metavar="N", help=share)
    add("--limit", type=int, metavar="N", help="at most N documents of each split, for a trial")
    add("--name", help="of the corpus (by default that of the kind of data)")
    add("--overwrite", action="store_true", help="replace the corpus that is at DIR already")
