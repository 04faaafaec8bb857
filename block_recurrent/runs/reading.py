"""What the work directories of finished and unfinished runs hold, read for the paper's tables."""

import functools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent import gin_files
from block_recurrent.config import AnyModelConfig, ConfigError, ExperimentConfig
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import workdir
from block_recurrent.runs.metrics import METRICS
from block_recurrent.training.build import abstract_model
from block_recurrent.training.evaluation import Evaluation

SUMS = Evaluation._fields


class RunError(ValueError):
    """A work directory that cannot be read as a run; the message says which file and line."""


class SelectionError(RunError, ConfigError):
    """Runs that do not go together, or not with the other options; the message says which."""


class Point(NamedTuple):
    """Validation figures on the way.

    Attributes:
      step: steps taken.
      tokens_seen: training targets up to the last line of metrics that is not after this step.
      evaluation: sums over the validation documents.
    """

    step: int
    tokens_seen: int
    evaluation: Evaluation


class Scored(NamedTuple):
    """What `experiments/evaluate.py` left in a work directory.

    Attributes:
      step: of the checkpoint.
      corpus: its name.
      documents: how many were scored.
      evaluation: sums over them.
    """

    step: int
    corpus: str
    documents: int
    evaluation: Evaluation


class Run(NamedTuple):
    """A run, finished or not.

    Attributes:
      workdir: where it is.
      config: its configuration.
      points: its validation figures, by step.
      step: of the last line of metrics, 0 without any.
      tokens_seen: training targets up to there.
      tokens_per_second: median over the lines of training; None without any.
      scored: later evaluations on the run's own corpus, by split.
    """

    workdir: Path
    config: ExperimentConfig
    points: tuple[Point, ...]
    step: int
    tokens_seen: int
    tokens_per_second: float | None
    scored: Mapping[str, Scored]

    @property
    def finished(self) -> bool:
        """Whether it has validation figures from its last step."""
        return bool(self.points) and self.points[-1].step >= self.config.training.num_steps

    @property
    def seeds(self) -> tuple[int, int]:
        """Of parameters and of the order of documents."""
        return self.config.training.seed, self.config.data.seed


@functools.cache
def parameters_without_embedding(model: AnyModelConfig) -> int:
    """How many numbers such a model learns besides its embedding; nothing is allocated."""
    return count_parameters(abstract_model(model), embedding=False)


def read_runs(directories: Iterable[str | Path]) -> list[Run]:
    """The runs in these directories.

    Raises:
      ConfigError: a directory given twice, or one that holds no run.
      RunError: a damaged file; the message names it, and its line.
    """
    found: dict[Path, Run] = {}
    for directory in map(Path, directories):
        place = directory.resolve()
        if place in found:
            raise SelectionError(f"{directory} is given twice; a run counts once, so leave one out")
        found[place] = read_run(directory)
    return list(found.values())


def read_run(directory: Path) -> Run:
    """The run in a directory.

    Raises:
      ConfigError: there is no configuration in it, or one that cannot be read.
      RunError: a damaged file; the message names it, and its line.
    """
    config = gin_files.load([workdir.config_file(directory)])
    points, speeds, step, tokens = [], [], 0, 0
    for where, line in read_lines(directory / METRICS):
        step = int(_number(line, "step", where))
        if "validation/nats" in line:
            points.append(Point(step, tokens, _evaluation(line, where, "validation/")))
        else:
            tokens += round(_number(line, "targets", where))
            if "tokens_per_second" in line:  # else no step was timed
                speeds.append(_number(line, "tokens_per_second", where))
    speed = statistics.median(speeds) if speeds else None
    return Run(directory, config, tuple(points), step, tokens, speed, _scored(directory, config))


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole line of a file of JSON lines, after its `file:line`; none without a file.

    Raises:
      RunError: a line is no JSON object.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        # What follows the last line end is still being written.
        for number, line in enumerate(lines[:-1], 1):
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(
            f"{where}: no JSON ({error.msg}, column {error.colno}); the file is damaged: mend or "
            "remove this line, or leave the run out"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, not {value!r}; leave the run out")
    return value


def _number(line: Mapping[str, Any], name: str, where: str) -> float:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RunError(f"{where}: {name!r} must be a number, not {value!r}; leave the run out")
    return value


def _evaluation(line: Mapping[str, Any], where: str, prefix: str = "") -> Evaluation:
    nats, *counts = (_number(line, prefix + name, where) for name in SUMS)
    evaluation = Evaluation(nats, *map(int, counts))
    if min(evaluation.tokens, evaluation.bytes) < 1:
        raise RunError(f"{where}: an evaluation of nothing ({line}); leave the run out")
    return evaluation


def _scored(directory: Path, config: ExperimentConfig) -> dict[str, Scored]:
    """By split; evaluations on documents of another name are not the run's."""
    found = {}
    for split in ("validation", "test"):
        path = directory / f"evaluation_{split}.json"
        if path.exists():
            line = _object(path.read_text(encoding="utf-8", errors="replace"), str(path))
            step, documents = (
                int(_number(line, name, str(path))) for name in ("step", "documents")
            )
            if line.get("corpus") == config.data.corpus_name:
                evaluation = _evaluation(line, str(path))
                found[split] = Scored(step, line["corpus"], documents, evaluation)
    return found
