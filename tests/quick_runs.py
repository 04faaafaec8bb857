"""Runs of train.py that take no time: a tiny corpus and model, and steps without computation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.runs.metrics import read_metrics
from block_recurrent.training import trainer
from block_recurrent.training.step import StepMetrics
from experiments import train

STEPS = 6
SAVED = (4, 6)  # the checkpoints that a finished run leaves
VALUES: dict[str, Any] = {
    "model.vocab_size": 256,
    "model.num_layers": 1,
    "model.recurrent_layers": (0,),
    "model.model_size": 8,
    "model.num_heads": 2,
    "model.head_size": 4,
    "model.mlp_size": 8,
    "model.window": 4,
    "model.num_states": 3,
    "data.source": "jsonl",
    "data.batch_size": 2,
    "data.segment_length": 8,
    "training.num_steps": STEPS,
    "training.log_every": 1,
    "training.evaluate_every": 100,
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 2,
}
TEXT = "the quick brown fox jumps over the lazy dog. "


def write_corpus(folder: Path, change: str = "") -> Path:
    """A corpus of five documents; `change` names the split that is to be a little different."""
    folder.mkdir(parents=True)
    for split, count in {"train": 5, "validation": 2}.items():
        records = [{"id": f"{split}{n}", "text": TEXT[n:] * (n + 1)} for n in range(count)]
        if split == change:
            records[-1]["text"] += "!"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def write_gin(path: Path, values: dict[str, Any]) -> Path:
    """A gin file of `VALUES` and others."""
    lines = (f"{name} = {value!r}\n" for name, value in (VALUES | values).items())
    path.write_text("".join(lines), encoding="utf-8")
    return path


def make_inputs(folder: Path) -> Path:
    """A corpus `books` and the configuration `tiny.gin` in a folder."""
    corpus = write_corpus(folder / "books")
    write_gin(folder / "tiny.gin", {"data.path": str(corpus)})
    return folder


class Steps:
    """In place of the compiled step, one that only counts.

    Attributes:
      batches: what the steps have read, by number of the step.
      at: called within the step of a number.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        self.batches: dict[int, Any] = {}
        self.at: dict[int, Callable[[], Any]] = {}
        patch.setattr(trainer, "make_train_step", lambda *_, **__: self._take)

    def _take(self, state, batch):
        number = int(state.step) + 1
        self.batches[number] = jax.device_get(batch)
        self.at.get(number, lambda: None)()
        metrics = StepMetrics(jnp.float32(number), jnp.float32(1), jnp.float32(0))
        return state._replace(step=state.step + 1), metrics


def run(inputs: Path, workdir: Path, *options: str) -> int:
    """Trains as the program does; returns the exit status."""
    arguments = [f"--gin_file={inputs / 'tiny.gin'}", f"--workdir={workdir}", *options]
    try:
        return train.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of each file, None for folders."""
    paths = sorted(folder.rglob("*"))
    names = [str(path.relative_to(folder)) for path in paths]
    contents = [None if path.is_dir() else path.read_bytes() for path in paths]
    return dict(zip(names, contents, strict=True))


def logged_steps(workdir: Path) -> list[int]:
    """The steps of all lines of metrics."""
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]


def checkpoint(workdir: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return workdir / "checkpoints" / str(step)


def warnings_in(text: str) -> Sequence[str]:
    """The lines of a program's output that are warnings."""
    return [line for line in text.splitlines() if "WARNING" in line]
