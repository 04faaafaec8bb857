"""Trains a model, or continues where an earlier call on the same work directory was stopped.

    python experiments/train.py --gin_file=gin/laptop_rec_fixed_skip.gin --workdir=runs/rec

    python experiments/train.py --gin_file=gin/table1/arxiv/rec_fixed_skip.gin --dry_run

The second prints configuration, parameters and memory of a run and reads no data.

SIGINT (Ctrl-C), SIGTERM or SIGHUP saves a checkpoint and leaves with status 130, 143 or 129, a
second one leaves at once; the same command goes on from there, with the same result as without the
stop.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import configure
import dry_run
import errors
import workdir
from block_recurrent.config import ExperimentConfig
from block_recurrent.parameters import count_parameters
from block_recurrent.training import train
from block_recurrent.training.checkpoints import Checkpoints
from block_recurrent.training.experiment import abstract_model, load_corpora
from block_recurrent.training.progress import ProgressLine
from block_recurrent.training.resume import check_unused
from block_recurrent.training.signals import stop_on_signal


def run(config: ExperimentConfig, folder: Path, argv: Sequence[str] | None) -> None:
    """Trains in the work directory `folder`; errors as of `train` and of what it is given."""
    line = ProgressLine()
    workdir.check_claim(folder, config)
    check_unused(folder, Checkpoints(folder / "checkpoints"))
    errors.check_device()
    corpora = load_corpora(config, line)
    for corpus in corpora:
        print(corpus.summary())
    model = abstract_model(config.model)
    sizes = [f"{count_parameters(model, embedding=e):,}" for e in (True, False)]
    print(f"parameters: {sizes[0]}, without embedding {sizes[1]}", flush=True)

    def begin() -> None:
        workdir.claim(folder, config)
        workdir.record_launch(folder, argv)

    train(config, folder, corpora, line=line, begin=begin)


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = configure.make_parser(__doc__)
    parser.add_argument("--workdir", type=Path, help="checkpoints and metrics")
    parser.add_argument(
        "--dry_run", action="store_true", help="only print configuration, parameters and memory"
    )
    arguments, config = configure.parse(parser, argv, needs_data=lambda found: not found.dry_run)
    if arguments.dry_run:
        print(dry_run.describe(config), end="")
        return 0
    if arguments.workdir is None:
        parser.error("the following arguments are required: --workdir")
    with stop_on_signal(nothing_to_save=True), errors.training_knobs_named(config):
        run(config, arguments.workdir, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
