"""The command line of a program: its docstring as help, gin flags, and the nearest valid option."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.gin_files import PARAMETERS, load
from block_recurrent.system.text import did_you_mean

DEBUG = "--debug"


class Parser(argparse.ArgumentParser):
    """Shows its description unchanged, accepts no abbreviations, and has the option `--debug`.

    The error for an unknown option names the nearest known one, also if other options are missing.

    Attributes:
      others: options that are parsed elsewhere, which the error may name too.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options["allow_abbrev"] = False
        super().__init__(**options)
        self.others: Sequence[str] = ()
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parses as the base class does, and exits with status 2 if an option is unknown."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        for word in [] if self._subparsers else options:
            if re.match("--?[A-Za-z]", word) and word.partition("=")[0] not in self._options():
                self.error(f"unknown argument {word!r}{self.nearest(word)}")
        return super().parse_known_args(words, namespace)

    def nearest(self, word: str) -> str:
        """` (did you mean ...?)` for the option nearest to a word, or an empty string."""
        return did_you_mean(word.partition("=")[0], [*self._options(), *self.others])

    def _options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def make_parser(documentation: str | None) -> Parser:
    """A parser with `--gin_file`, whose help also explains `--gin.NAME=VALUE`.

    Args:
      documentation: the program's docstring; `--help` shows it unchanged.
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
    """The program's arguments and its experiment; exits with status 2 if either is wrong.

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
