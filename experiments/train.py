"""Trains a model, or continues where an earlier call on the same work directory was stopped.

    python experiments/train.py --gin_file=gin/laptop_rec_fixed_skip.gin --workdir=runs/rec

    python experiments/train.py --gin_file=gin/table1/arxiv/rec_fixed_skip.gin --dry_run

The second prints configuration, parameters and memory of a run and reads no data.

SIGINT (Ctrl-C) or SIGTERM saves a checkpoint and leaves with status 130; the same command goes on
from there, with the same result as without the stop.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import configure
import dry_run
import workdir
from block_recurrent.parameters import count_parameters
from block_recurrent.training import Stopped, train
from block_recurrent.training.loop import load_corpora, make_model


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
    try:
        corpora = load_corpora(config)
        workdir.claim(arguments.workdir, config)
    except ValueError as error:
        parser.error(str(error))
    for corpus in corpora:
        print(corpus.summary())
    sizes = [f"{count_parameters(make_model(config), embedding=e):,}" for e in (True, False)]
    print(f"parameters: {sizes[0]}, without embedding {sizes[1]}", flush=True)
    try:
        train(config, arguments.workdir, corpora)
    except Stopped:
        return 130
    except (ValueError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
