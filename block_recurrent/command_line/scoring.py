"""Scores a run's model on the documents of a split, and writes the run's own metrics."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from block_recurrent.config import ExperimentConfig
from block_recurrent.data.loading import load_split, makes_token_cache
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import batch_shards, make_mesh, reading_mesh
from block_recurrent.runs.identity import other_settings
from block_recurrent.runs.trained import NEWEST, load
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine
from block_recurrent.training.evaluation import evaluate, scoring_lanes


def evaluation_file(workdir: Path, split: str) -> Path:
    """Where a work directory keeps the metrics of a split."""
    return workdir / f"evaluation_{split}.json"


def score(
    workdir: Path,
    config: ExperimentConfig,
    split: str,
    *,
    checkpoint: str | int = NEWEST,
    output: Path | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Prints which documents were read and their metrics, and writes the metrics.

    Metrics of another checkpoint than the newest, or of another configuration in what they depend
    on, are not the run's own. They are written only to the file `output`.

    Args:
      workdir: the run's directory.
      config: the run's configuration, or another one.
      split: "train", "validation" or "test".
      checkpoint: the `step` of `load`.
      output: the file to write; `evaluation_<split>.json` in the work directory unless given.
      batch_size: number of lanes; the result of `scoring_lanes` unless given.

    Returns:
      What was written, or would have been.

    Raises:
      ConfigError: the work directory holds no run.
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
      DataError: the documents cannot be read.
    """
    others = other_settings(workdir, config)
    if checkpoint != NEWEST:
        others.append(f"checkpoint: {checkpoint}")
    config = dataclasses.replace(config, mesh=reading_mesh(config.mesh))
    line = ProgressLine(quiet=not processes.is_primary())
    mesh = make_mesh(config.mesh, config.data.batch_size, exact=processes.several())
    trained = load(workdir, checkpoint, config=config, mesh=mesh)
    corpus = processes.together(
        lambda: load_split(config.data, split, line.show),
        primary_first=makes_token_cache(config.data),
    )
    if processes.is_primary():
        print(corpus.summary(), flush=True)
    metrics = evaluate(
        config,
        trained.model,
        corpus,
        lambda share: line.show(f"evaluating {corpus.origin}: {share:.0%}"),
        batch_size=batch_size or scoring_lanes(config.data, corpus, batch_shards(mesh)),
    ).metrics()
    line.end()
    result = {
        "step": trained.step,
        "split": split,
        "corpus": config.data.corpus_name,
        "origin": corpus.origin,
        "documents": len(corpus),
        **metrics,
    }
    if not processes.is_primary():
        return result
    _print(metrics)
    if output or not others:
        _write(output or evaluation_file(workdir, split), result)
    else:
        listed = "; ".join(others)
        print(f"not written, for it differs from the run in: {listed}; --output=FILE writes it")
    return result


def _print(metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
        print(f"{name:>16} {value:,.6g}" if isinstance(value, float) else f"{name:>16} {value:,}")


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")
