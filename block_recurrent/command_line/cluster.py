"""Options of programs that several processes run together."""

import argparse

from block_recurrent.command_line.parser import Parser
from block_recurrent.parallel.processes import Cluster, join


def add_cluster_options(parser: Parser) -> None:
    """Adds `--multiprocess`, and what says where the processes are if nothing else does."""
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
    """Joins the other processes if that was asked for, before JAX looks for devices.

    Exits with status 2 where the options do not fit together.

    Raises:
      ClusterUnreachable: they were not found.
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
