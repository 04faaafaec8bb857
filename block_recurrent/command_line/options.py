"""Options of several programs: checked values, checkpoints, several processes."""

import argparse
from pathlib import Path

from block_recurrent.command_line.parser import Parser
from block_recurrent.parallel.processes import Cluster, join
from block_recurrent.runs.trained import BEST, NEWEST


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def file_to_write(text: str) -> Path:
    """The path of a file, which may exist; a directory is an error."""
    path = Path(text).expanduser()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    return path


def file_to_read(text: str) -> Path:
    """The path of a readable file, or `-` for standard input."""
    path = Path(text).expanduser()
    try:
        if text != "-":
            path.open("rb").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return path


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--checkpoint`: the newest, the best, or a step."""
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


def add_cluster_options(parser: Parser) -> None:
    """Adds `--multiprocess`, and the options that locate the other processes."""
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
    """Joins the other processes if the options ask for it. Call it before JAX uses devices.

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
