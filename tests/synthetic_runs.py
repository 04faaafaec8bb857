"""Work directories as training leaves them, with figures of a test's choice."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from block_recurrent import gin_files
from block_recurrent.config import ExperimentConfig

BYTES = 1000
TOKENS = {"bytes": 1000, "sentencepiece": 250}
TARGETS = 4096.0


def exit_status(main: Callable[[list[str]], int], *words: object) -> int | str | None:
    """What a program ends with, whether it returns it or leaves."""
    try:
        return main(list(map(str, words)))
    except SystemExit as left:
        return left.code


def small(row: str = "rec_fixed_skip", corpus: str = "books", **values: Any) -> dict[str, Any]:
    """A small configuration's files and bindings; `values` have `__` for the point."""
    return {
        "files": [f"small/{row}.gin"],
        "values": {"data.path": f"/no/{corpus}", "training.num_steps": 4, **_points(values)},
    }


def paper(row: str, **values: Any) -> dict[str, Any]:
    """A row of the paper at its size, on PG19's bytes unless `values` say otherwise."""
    base = {
        "model.vocab_size": 256,
        "data.source": "text",
        "data.path": "/no/pg19",
        "data.name": "PG19",
        "training.num_steps": 4,
    }
    if values.get("data__tokenizer") == "sentencepiece":
        base |= {"data.vocab_path": "/no/vocab", "data.vocab_sha256": "0" * 64}
    return {
        "files": ["sizes/paper.gin", f"rows/{row}.gin"],
        "values": base | _points(values),
    }


def _points(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in values.items()}


def load(made: Mapping[str, Any]) -> ExperimentConfig:
    """The configuration of `small` or `paper`."""
    bindings = [f"{name}={value!r}" for name, value in made["values"].items()]
    return gin_files.load(made["files"], bindings)


def write_run(
    folder: Path, made: Mapping[str, Any], bits: Sequence[float], *, speed: float = 100.0
) -> Path:
    """A run with one line of training and one of validation a step.

    Args:
      folder: the work directory.
      made: of `small` or `paper`.
      bits: validation bits per token of each step.
      speed: tokens per second.
    """
    config = load(made)
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(gin_files.to_gin(config), encoding="utf-8")
    lines = []
    for step, value in enumerate(bits, 1):
        lines.append({"step": step, "targets": TARGETS, "tokens_per_second": speed})
        sums = evaluation_sums(value, TOKENS[config.data.tokenizer])
        lines.append({"step": step} | {f"validation/{name}": s for name, s in sums.items()})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def evaluation_sums(bits_per_token: float, tokens: int = 1000, words: int = 200) -> dict[str, Any]:
    """The sums of an evaluation with these bits per token."""
    nats = bits_per_token * tokens * math.log(2)
    return {"nats": nats, "tokens": tokens, "bytes": BYTES, "words": words}


def write_evaluation(folder: Path, split: str, documents: int, **sums: Any) -> None:
    """What the evaluation program leaves."""
    line = {"step": 4, "split": split, "corpus": "PG19", "documents": documents, **sums}
    (folder / f"evaluation_{split}.json").write_text(json.dumps(line), encoding="utf-8")
