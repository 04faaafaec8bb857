"""The command line of a program: its docstring as help, gin flags, and the nearest valid option."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.gin_files import PARAMETERS, describe_parameters, load
from block_recurrent.system.text import did_you_mean

DEBUG = "--debug"
_log = logging.getLogger(__name__)


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
        if not self._subparsers:
            self._say_which_counts(options)
        found, unknown = super().parse_known_args(words, namespace)
        for name, value in vars(found).items():
            setattr(found, name, _expanded(value))
        return found, unknown

    def _say_which_counts(self, words: Sequence[str]) -> None:
        """Logs which value is used of options that are given several times, but take one."""
        names = [word.partition("=")[0] for word in words]
        for action in self._actions:
            given = [name for name in names if name in action.option_strings]
            if len(given) > 1 and type(action).__name__ == "_StoreAction":
                _log.warning("%s is given several times: the last counts", given[0])

    def nearest(self, word: str) -> str:
        """` (did you mean ...?)` for the option nearest to a word, or an empty string."""
        return did_you_mean(word.partition("=")[0], [*self._options(), *self.others])

    def _options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def _expanded(value: Any) -> Any:
    """A value in which a path, or each of several, has the home directory in place of ~."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return value.expanduser() if isinstance(value, Path) else value


def make_parser(documentation: str | None) -> Parser:
    """A parser with `--gin_file`, whose help also explains `--gin.NAME=VALUE`.

    Args:
      documentation: the program's docstring; `--help` shows it unchanged.
    """
    parser = Parser(description=documentation)
    parser.others = [f"--gin.{name}" for name in PARAMETERS]
    group = parser.add_argument_group(
        "configuration",
        "--gin.NAME=VALUE, such as --gin.data.batch_size=8, wins over every file. "
        "--gin_bindings='NAME = VALUE' is the same. The parameters are listed below.",
    )
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="gin file; may be repeated",
    )
    parser.epilog = f"parameters of --gin.NAME=VALUE:\n\n{describe_parameters()}"
    return parser


def _without_gin_bindings(words: Sequence[str]) -> Iterator[str]:
    """Yields the words, with `--gin.NAME=VALUE` for every binding in `--gin_bindings=TEXT`."""
    rest = iter(words)
    for word in rest:
        name, joined, text = word.partition("=")
        if name != "--gin_bindings":
            yield word
            continue
        text = text if joined else next(rest, "")
        if not joined and (not text or text.startswith("--")):
            raise ConfigError("--gin_bindings: write --gin_bindings='NAME = VALUE'")
        for line in filter(str.strip, text.splitlines()):
            yield "--gin." + re.sub(r"^\s*([\w.]+)\s*=\s*", r"\1=", line)


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
    try:
        words = list(_without_gin_bindings(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        parser.error(str(error))
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
