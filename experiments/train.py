"""Trains a model, or continues where an earlier call on the same work directory was stopped.

    python experiments/train.py --gin_file=gin/laptop_rec_fixed_skip.gin --workdir=runs/rec

    python experiments/train.py --gin_file=gin/table1/arxiv/rec_fixed_skip.gin --dry_run
    srun python experiments/train.py --gin_file=gin/scaling/1300m_rec.gin --workdir=W --multiprocess

The second prints configuration, parameters and memory of a run and reads no data. The third is one
of several processes, on one machine or many, that see the same files; process 0 speaks for all.

SIGINT (Ctrl-C), SIGTERM or SIGHUP saves a checkpoint and leaves with status 130, 143 or 129, a
second one leaves at once; the same command goes on from there, with the same result as without the
stop. Of several processes any may get the signal: all save and leave.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.cluster import add_cluster_options, join_cluster
from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.flags import make_parser, parse
from block_recurrent.gin_files import to_gin
from block_recurrent.runs import train
from block_recurrent.training.estimate import describe


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=Path, help="checkpoints and metrics")
    parser.add_argument(
        "--dry_run", action="store_true", help="only print configuration, parameters and memory"
    )
    add_cluster_options(parser)
    arguments, config = parse(parser, argv, needs_data=lambda found: not found.dry_run)
    if arguments.dry_run:
        print(to_gin(config), describe(config), sep="\n", end="")
        return 0
    if arguments.workdir is None:
        parser.error("the following arguments are required: --workdir")
    join_cluster(parser, arguments)
    with training_knobs_named(config):
        train(config, arguments.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
