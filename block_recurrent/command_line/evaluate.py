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

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import (
    add_checkpoint_option,
    add_cluster_options,
    file_to_write,
    join_cluster,
    positive,
)
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.data import DataError, TokenizedCorpus
from block_recurrent.data.documents import SPLITS
from block_recurrent.data.loading import load_split, makes_token_cache
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import batch_shards, make_mesh, reading_mesh
from block_recurrent.runs.identity import other_settings
from block_recurrent.runs.trained import NEWEST, load
from block_recurrent.runs.workdir import config_file
from block_recurrent.system.devices import check_device
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import stop_on_signal
from block_recurrent.training.evaluation import evaluate, scoring_lanes


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
        others = other_settings(arguments.workdir, config)
        config = dataclasses.replace(config, mesh=reading_mesh(config.mesh))
        result, other_text = _score(arguments, config)
        if processes.is_primary():
            _write(arguments, result, others + other_text)
    return 0


def _score(
    arguments: argparse.Namespace, config: ExperimentConfig
) -> tuple[dict[str, Any], list[str]]:
    """Scores a run's model, and prints which documents were read and the metrics.

    Returns:
      The result, and a phrase if the corpus is not the one that the run was validated on.
    """
    line = ProgressLine(quiet=not processes.is_primary())
    mesh = make_mesh(config.mesh, config.microbatch_size, exact=processes.several())
    trained = load(arguments.workdir, arguments.checkpoint, config=config, mesh=mesh)

    def read(split: str) -> TokenizedCorpus:
        return processes.together(
            lambda: load_split(config.data, split, line.show),
            primary_first=makes_token_cache(config.data),
        )

    corpus = read(arguments.split)
    if processes.is_primary():
        print(corpus.summary(), flush=True)

    def progress(share: float) -> None:
        line.compiled("the evaluation")
        line.show(f"evaluating {corpus.origin}: {share:.0%}")

    line.compiling("the evaluation")
    metrics = evaluate(
        config,
        trained.model,
        corpus,
        progress,
        batch_size=arguments.batch_size or scoring_lanes(config, corpus, batch_shards(mesh)),
    ).metrics()
    line.end()
    if processes.is_primary():
        for name, value in metrics.items():
            number = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
            print(f"{name:>16} {number}")
    result = {
        "step": trained.step,
        "split": arguments.split,
        "corpus": config.data.corpus_name,
        "origin": corpus.origin,
        "fingerprint": corpus.fingerprint,
        "documents": len(corpus),
        **metrics,
    }
    with contextlib.suppress(DataError):  # no documents for validation
        validation = corpus if arguments.split == "validation" else read("validation")
        if validation.fingerprint == trained.progress["validation"]:
            return result, []
    return result, [f"documents: those of {config.data.path or config.data.source}"]


def _write(arguments: argparse.Namespace, result: dict[str, Any], others: list[str]) -> None:
    """Writes the result; if other settings make it not the run's own, only to `--output`."""
    if arguments.checkpoint != NEWEST:
        others = [*others, f"checkpoint: {arguments.checkpoint}"]
    if others and not arguments.output:
        listed = "; ".join(others)
        print(f"not written, for it differs from the run in: {listed}; --output=FILE writes it")
        return
    path = arguments.output or arguments.workdir / f"evaluation_{arguments.split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")
