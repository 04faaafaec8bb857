"""Options that name work directories and checkpoints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.values import checkpoint
from block_recurrent.runs import workdir
from block_recurrent.runs.reading import Run, SelectionError, read_runs
from block_recurrent.runs.trained import BEST, NEWEST


def parse_runs(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, output: str
) -> tuple[argparse.Namespace, list[Run]]:
    """The arguments of a program over work directories, and the runs that they name.

    Exits with status 2 where the arguments are wrong. A directory that holds no run, such as one
    with earlier results, is left out with a note.

    Args:
      parser: the program's parser, with its own options.
      argv: the command line; `sys.argv[1:]` if None.
      output: where the results go unless `--output` is given.

    Raises:
      ConfigError: no run is left, or a directory is given twice.
      RunError: a file of a run is damaged.
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
    """Adds the option `--checkpoint`, which says which checkpoint is loaded."""
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        default=NEWEST,
        metavar="WHICH",
        help=f"{NEWEST} (unless given), {BEST} on the validation documents, or a step",
    )
