"""Scores a trained model on the documents of one split, every token once.

    python experiments/evaluate.py --workdir=runs/rec
    python experiments/evaluate.py --workdir=runs/rec --split=test
    python experiments/evaluate.py --workdir=runs/rec --gin.data.path=/other/books \\
        --output=other.json

The result goes to `evaluation_<split>.json` in the work directory, where the tables look for it.
The figures depend neither on the batch size nor (but for `training.clear_states`) on the segment
length; documents are read side by side, up to twice the batch of training. With any other setting,
another corpus or not the newest checkpoint, they are not the run's: they are printed, and written
only where `--output` says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.cluster import add_cluster_options, join_cluster
from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.flags import make_parser, parse
from block_recurrent.command_line.values import file_to_write, positive
from block_recurrent.command_line.workdirs import add_checkpoint_option
from block_recurrent.data.documents import SPLITS
from block_recurrent.runs.scoring import score
from block_recurrent.runs.workdir import config_file
from block_recurrent.system.devices import check_device
from block_recurrent.system.signals import stop_on_signal


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    add_checkpoint_option(parser)
    parser.add_argument("--split", default="validation", choices=SPLITS)
    parser.add_argument(
        "--batch_size", type=positive, metavar="N", help="documents that are read at once"
    )
    parser.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="where the result goes, in place of WORKDIR",
    )
    add_cluster_options(parser)
    arguments, config = parse(parser, argv, lambda found: [config_file(found.workdir)])
    join_cluster(parser, arguments)
    with stop_on_signal(nothing_to_save=True), training_knobs_named(config):
        check_device()
        score(
            arguments.workdir,
            config,
            arguments.split,
            checkpoint=arguments.checkpoint,
            output=arguments.output,
            batch_size=arguments.batch_size,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
