"""Trains a model, or continues a run that was stopped.

    block-recurrent train --gin_file=laptop_rec_fixed_skip.gin --workdir=runs/rec

    block-recurrent train --gin_file=table1/arxiv/rec_fixed_skip.gin --dry_run
    srun block-recurrent train --gin_file=scaling/1300m_rec.gin --workdir=W --multiprocess

The second prints configuration, parameters and memory of a run and reads no data. The third is one
of several processes, on one machine or many, that see the same files; process 0 alone prints.

SIGINT (Ctrl-C), SIGTERM or SIGHUP saves a checkpoint and exits with status 130, 143 or 129; a
second signal exits at once. The same command continues from there, with the same result as without
the stop. If one of several processes gets the signal, all of them save and exit.
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import add_cluster_options, join_cluster
from block_recurrent.command_line.parser import make_parser, parse
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
