"""A program's command line with an experiment on it: `--gin_file` and `--gin.NAME=VALUE`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from block_recurrent.command_line.parser import Parser
from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.gin_files import PARAMETERS, load


def make_parser(documentation: str | None) -> Parser:
    """A program's parser: `--gin_file`, and a word on `--gin.NAME=VALUE` in the help.

    Args:
      documentation: the program's docstring, shown by `--help` as it stands.
    """
    parser = Parser(description=documentation)
    parser.others = [f"--gin.{name}" for name in PARAMETERS]
    group = parser.add_argument_group(
        "configuration", "--gin.NAME=VALUE, such as --gin.data.batch_size=8, wins over every file"
    )
    group.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="gin file; may be repeated"
    )
    return parser


def parse(
    parser: Parser,
    argv: Sequence[str] | None = None,
    base_files: Callable[[argparse.Namespace], Sequence[str | Path]] = lambda arguments: (),
    needs_data: Callable[[argparse.Namespace], bool] = lambda arguments: True,
) -> tuple[argparse.Namespace, ExperimentConfig]:
    """The program's arguments and its experiment; exits with status 2 where either is wrong.

    Args:
      parser: the program's parser, from `make_parser`.
      argv: the command line; `sys.argv[1:]` if None.
      base_files: given the program's arguments, returns gin files to read before `--gin_file`'s.
      needs_data: given the program's arguments, returns whether the paths of data must be set.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    rest = [word for word in words if not word.startswith("--gin.")]
    arguments, unknown = parser.parse_known_args(rest)
    if unknown:
        nearest = parser.nearest(unknown[0])
        nearest = nearest or "; a value is joined by =, for example --gin.model.window=128"
        parser.error(f"unknown argument {unknown[0]!r}{nearest}")
    try:
        files = [*base_files(arguments), *arguments.gin_file]
        return arguments, load(files, bindings, needs_data=needs_data(arguments))
    except ConfigError as error:
        parser.error(str(error))
