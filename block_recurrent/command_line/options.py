"""Options that several programs have: checked values, work directories, several processes."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.parser import Parser
from block_recurrent.parallel.processes import Cluster, join
from block_recurrent.runs import workdir
from block_recurrent.runs.reading import Run, SelectionError, read_runs
from block_recurrent.runs.trained import BEST, NEWEST

_log = logging.getLogger(__name__)


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def file_to_write(text: str) -> Path:
    """The path of a file, which may exist; an error if it is a directory."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    return Path(text)


def file_to_read(text: str) -> str:
    """The path of a file that can be read, or `-` for standard input."""
    try:
        if text != "-":
            Path(text).open("rb").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return text


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--checkpoint`: the newest, the best, or the step of one."""
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
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be {NEWEST}, {BEST} or a step, not {text!r}")
    return int(text)


def parse_runs(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, output: str
) -> tuple[argparse.Namespace, list[Run]]:
    """The arguments of a program that reads work directories, and the runs in them.

    Exits with status 2 if the arguments are wrong. A directory without a run, such as one with
    earlier results, is skipped with a note.

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


def add_cluster_options(parser: Parser) -> None:
    """Adds `--multiprocess`, and options that say where the other processes are."""
    group = parser.add_argument_group(
        "several processes", "each of which is started with the same command"
    )
    group.add_argument(
        "--multiprocess",
        action="store_true",
        help="join the processes that SLURM, Open MPI, Cloud TPU or GKE has started",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--process_count", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_index", type=int, metavar="I", help="which this is, from 0")


def join_cluster(parser: Parser, arguments: argparse.Namespace) -> None:
    """Joins the other processes if the options ask for it, before JAX looks for devices.

    Exits with status 2 if the options do not fit together.

    Raises:
      ClusterUnreachable: the other processes were not found.
    """
    cluster = Cluster(*(getattr(arguments, name) for name in Cluster._fields))
    if cluster == Cluster():
        if arguments.multiprocess:
            join(cluster)
        return
    address, count, index = cluster
    if address is None or count is None or index is None:
        parser.error("--" + ", --".join(Cluster._fields) + " belong together")
    if not 0 <= index < count:
        parser.error(f"--process_index={index} is not in 0 .. {count - 1}, of {count} processes")
    if not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
        parser.error(f"--coordinator_address={address}: write HOST:PORT")
    if count > 1:
        join(cluster)
