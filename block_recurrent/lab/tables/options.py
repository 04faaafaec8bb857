"""The command line of the programs that read work directories."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.runs import workdir
from block_recurrent.runs.reading import Run, SelectionError, read_runs

_log = logging.getLogger(__name__)


def parse_runs(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, output: str
) -> tuple[argparse.Namespace, list[Run]]:
    """The arguments of a program that reads work directories, and the runs in them.

    Exits with status 2 if the arguments are wrong. Skips directories without a run, such as those
    with earlier results, and logs that.

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
    kept = []
    for path in arguments.workdirs:
        if path.is_dir() and not workdir.holds_run(path):
            _log.info("left out: %s holds no run", path)
        else:
            kept.append(path)
    if not kept:
        raise SelectionError(
            f"no run is left: give a work directory of train.py, which has a {workdir.CONFIG}"
        )
    return arguments, read_runs(kept)
