"""Scores a trained model on the documents of one split, every token once.

    python experiments/evaluate.py --workdir=runs/rec
    python experiments/evaluate.py --workdir=runs/rec --split=test
    python experiments/evaluate.py --workdir=runs/rec --gin.data.path=/other/books \\
        --output=other.json

The result goes to `evaluation_<split>.json` in the work directory, where the tables look for it.
The figures depend neither on the batch size nor (but for `training.clear_states`) on the segment
length. With any other setting, another corpus or not the newest checkpoint, they are not the run's:
they are printed, and written only where `--output` says.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import configure
import errors
import workdir
from block_recurrent.config import ExperimentConfig
from block_recurrent.data.documents import SPLITS
from block_recurrent.files import write_whole
from block_recurrent.training.experiment import evaluate_run, load_split
from block_recurrent.training.progress import ProgressLine
from block_recurrent.training.signals import stop_on_signal
from options import Parser


def make_parser() -> Parser:
    """The program's command line."""
    parser = configure.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    workdir.add_checkpoint_option(parser)
    parser.add_argument("--split", default="validation", choices=SPLITS)
    parser.add_argument(
        "--output", type=_file, metavar="FILE", help="where the result goes, in place of WORKDIR"
    )
    return parser


def _file(text: str) -> Path:
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    return Path(text)


def score(arguments: argparse.Namespace, config: ExperimentConfig) -> dict[str, Any]:
    """The result, for JSON; prints which documents were read and the figures."""
    line = ProgressLine()
    with stop_on_signal(nothing_to_save=True), errors.training_knobs_named(config):
        errors.check_device()
        step, model = workdir.restore_model(arguments.workdir, config, arguments.checkpoint)
        corpus = load_split(config, arguments.split, line)
        print(corpus.summary(), flush=True)
        figures = evaluate_run(config, model, corpus, line).figures()
    line.end()
    for name, value in figures.items():
        print(f"{name:>16} {value:,.6g}" if isinstance(value, float) else f"{name:>16} {value:,}")
    return {
        "step": step,
        "split": arguments.split,
        "corpus": config.data.corpus_name,
        "origin": corpus.origin,
        "documents": len(corpus),
        **figures,
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes the result as JSON, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments, config = configure.parse(
        make_parser(), argv, lambda found: [workdir.config_file(found.workdir)]
    )
    others = workdir.other_settings(arguments.workdir, config)
    if arguments.checkpoint != workdir.NEWEST:
        others.append(f"checkpoint: {arguments.checkpoint}")
    result = score(arguments, config)
    if arguments.output or not others:
        write(arguments.output or arguments.workdir / f"evaluation_{arguments.split}.json", result)
    else:
        listed = "; ".join(others)
        print(f"not written, for it differs from the run in: {listed}; --output=FILE writes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
