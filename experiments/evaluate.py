"""Scores a trained model on the documents of one split, every token once.

    python experiments/evaluate.py --workdir=runs/rec

The result goes to `evaluation_<split>.json` in the work directory. The data may be changed,
`--gin.data.path=/other/books --gin.data.name=other`; the figures depend neither on the batch size
nor on the segment length.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import configure
import errors
import workdir
from block_recurrent.data.documents import SPLITS
from block_recurrent.files import write_whole
from block_recurrent.training.experiment import evaluate_run, load_split
from block_recurrent.training.progress import ProgressLine
from block_recurrent.training.signals import stop_on_signal


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = configure.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    parser.add_argument("--split", default="validation", choices=SPLITS)
    arguments, config = configure.parse(
        parser, argv, lambda found: [workdir.config_file(found.workdir)]
    )
    line = ProgressLine()
    with stop_on_signal(nothing_to_save=True), errors.training_knobs_named(config):
        errors.check_device()
        step, model = workdir.restore_model(arguments.workdir, config)
        corpus = load_split(config, arguments.split, line)
        print(corpus.summary(), flush=True)
        evaluation = evaluate_run(config, model, corpus, line)
    line.end()
    for name, value in evaluation.figures().items():
        print(f"{name:>16} {value:,.6g}" if isinstance(value, float) else f"{name:>16} {value:,}")
    path = arguments.workdir / f"evaluation_{arguments.split}.json"
    result = {
        "step": step,
        "split": arguments.split,
        "corpus": config.data.corpus_name,
        "origin": corpus.origin,
        "documents": len(corpus),
        **evaluation.figures(),
    }
    write_whole(path, json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
