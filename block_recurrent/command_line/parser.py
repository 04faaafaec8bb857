"""The command line of a program: its docstring as help, `--debug`, and the nearest valid option."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from block_recurrent.system.text import did_you_mean

DEBUG = "--debug"


class Parser(argparse.ArgumentParser):
    """Shows its description as it stands, takes no abbreviations, and has the option `--debug`.

    An unknown option is an error that names the nearest known one, also where others are missing.

    Attributes:
      others: options that the program takes elsewhere, which that error may name too.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options["allow_abbrev"] = False
        super().__init__(**options)
        self.others: Sequence[str] = ()
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parses as the base class does, and exits with status 2 for an unknown option."""
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
