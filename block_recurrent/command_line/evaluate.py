"""Scores a trained model on the documents of one split, every token once.

    block-recurrent evaluate --workdir=runs/rec
    block-recurrent evaluate --workdir=runs/rec --split=test
    block-recurrent evaluate --workdir=runs/rec --gin.data.path=/other/books --output=other.json

The result goes to `evaluation_<split>.json` in the work directory, where the tables look for it.
The figures do not depend on the batch size, nor on the segment length unless
`training.clear_states` is set. Up to twice as many documents as in a training batch are read side
by side. With other settings, another corpus or another checkpoint than the newest, the figures are
not the run's own: they are printed, and written only to the file that `--output` names.
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import (
    add_checkpoint_option,
    add_cluster_options,
    file_to_write,
    join_cluster,
    positive,
)
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.command_line.scoring import score
from block_recurrent.data.documents import SPLITS
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
