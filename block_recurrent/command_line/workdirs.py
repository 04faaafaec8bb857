"""Options that name work directories and checkpoints."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.runs import workdir
from block_recurrent.runs.reading import Run, SelectionError, read_runs
from block_recurrent.runs.trained_model import BEST, NEWEST


def parse_runs(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, output: str
) -> tuple[argparse.Namespace, list[Run]]:
    """A program's arguments, exits with status 2 where they are wrong, and the runs they name.

    Args:
      parser: with the program's own options.
      argv: the command line, `sys.argv[1:]` by default.
      output: where the results go unless `--output` is given.

    A directory that holds no run, such as one with earlier results, is left out with a note.

    Raises:
      ConfigError: a directory given twice, or one that does not exist; or no run is left.
      RunError: a damaged file; the message names it, and its line.
    """
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="of a run")
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR", help=f"{output} unless given"
    )
    arguments = parser.parse_args(argv)
    return arguments, read_runs(_with_runs(arguments.workdirs))


def _with_runs(directories: Sequence[Path]) -> list[Path]:
    """The directories without those that exist and hold no run, each of which is noted."""
    kept = [path for path in directories if not path.is_dir() or workdir.holds_run(path)]
    for path in directories:
        if path not in kept:
            print(f"left out: {path} holds no run", file=sys.stderr)
    if not kept:
        raise SelectionError(
            f"no run is left: give a work directory of train.py, which has a {workdir.CONFIG}"
        )
    return kept


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """The option `--checkpoint`, for `restore_model`."""
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        default=NEWEST,
        metavar="WHICH",
        help=f"{NEWEST} (unless given), {BEST} on the validation documents, or a step",
    )


def _checkpoint(text: str) -> str | int:
    if text in (NEWEST, BEST):
        return text
    if not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError(f"must be {NEWEST}, {BEST} or a step, not {text!r}")
    return int(text)
