"""The records of finished and unfinished runs, read from their work directories for the tables."""

import functools
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent import gin_files
from block_recurrent.config import AnyModelConfig, ExperimentConfig
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import workdir
from block_recurrent.runs.errors import RunError, SelectionError
from block_recurrent.runs.metrics import METRICS, number_in, read_lines, read_object
from block_recurrent.training.build import abstract_model
from block_recurrent.training.evaluation import Evaluation

SUMS = Evaluation._fields


class Point(NamedTuple):
    """An evaluation during training.

    Attributes:
      step: steps taken.
      tokens_seen: training targets in the lines of metrics up to this step.
      evaluation: sums over the validation documents.
    """

    step: int
    tokens_seen: int
    evaluation: Evaluation


class Scored(NamedTuple):
    """The result of `evaluate.py` in a work directory.

    Attributes:
      step: the checkpoint's step.
      corpus: name of the corpus.
      documents: number of documents scored.
      evaluation: sums over these documents.
    """

    step: int
    corpus: str
    documents: int
    evaluation: Evaluation


class Run(NamedTuple):
    """The records of a run, finished or not.

    Attributes:
      workdir: the run's directory.
      config: the run's configuration.
      points: evaluations during training, by step.
      step: step of the last line of metrics, 0 without lines.
      tokens_seen: training targets up to that step.
      tokens_per_second: median over the lines of training; None without lines.
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

    def tokens_at(self, step: int) -> float:
        """About how many training targets it had seen at a step, 0 if none was logged."""
        return self.tokens_seen * step / max(self.step, 1)

    @property
    def seeds(self) -> tuple[int, int]:
        """Of parameters and of the order of documents."""
        return self.config.training.seed, self.config.data.seed


def same_tokens(first: float, second: float) -> bool:
    """Whether figures after so many training targets may be compared: they differ by at most 1 %.

    Batches of one size differ in their padding.
    """
    return abs(first - second) <= 0.01 * max(first, second)


@functools.cache
def parameters_without_embedding(model: AnyModelConfig) -> int:
    """How many numbers such a model learns besides its embedding; nothing is allocated."""
    return count_parameters(abstract_model(model), embedding=False)


def read_runs(directories: Iterable[str | Path]) -> list[Run]:
    """The runs in these directories.

    Raises:
      ConfigError: a directory is given twice, or holds no run; or runs on a corpus of one name were
        scored on different text.
      RunError: a file is damaged; the message names it, and its line.
    """
    found: dict[Path, Run] = {}
    for directory in map(Path, directories):
        path = directory.resolve()
        if path in found:
            raise SelectionError(f"{directory} is given twice; a run counts once, so leave one out")
        found[path] = read_run(directory)
    _check_same_text(found.values())
    return list(found.values())


def _check_same_text(runs: Iterable[Run]) -> None:
    """Checks that all figures of a corpus and a split are of as many bytes of text."""
    first: dict[tuple[str, str], tuple[int, Path]] = {}
    for run in runs:
        name = run.config.data.corpus_name
        figures = [("validation", point.evaluation) for point in run.points]
        figures += [(split, scored.evaluation) for split, scored in run.scored.items()]
        for split, evaluation in figures:
            count, other = first.setdefault((name, split), (evaluation.bytes, run.workdir))
            if count != evaluation.bytes:
                raise SelectionError(
                    f"{other} and {run.workdir} have figures of different documents of the split "
                    f"{split} of {name!r}, {count:,} and {evaluation.bytes:,} bytes: leave one "
                    "out, name their corpora with data.name, or evaluate again"
                )


def read_run(directory: Path) -> Run:
    """The run in a directory.

    Raises:
      ConfigError: there is no configuration in it, or one that cannot be read.
      RunError: a damaged file; the message names it, and its line.
    """
    config = gin_files.load([workdir.config_file(directory)])
    points, speeds, step, tokens = [], [], 0, 0
    for where, line in read_lines(directory / METRICS):
        step = int(number_in(line, "step", where))
        if "validation/nats" in line:
            points.append(Point(step, tokens, _evaluation(line, where, "validation/")))
        else:
            tokens += round(number_in(line, "targets", where))
            if "tokens_per_second" in line:  # else no step was timed
                speeds.append(number_in(line, "tokens_per_second", where))
    speed = statistics.median(speeds) if speeds else None
    return Run(directory, config, tuple(points), step, tokens, speed, _scored(directory, config))


def _evaluation(line: Mapping[str, Any], where: str, prefix: str = "") -> Evaluation:
    line = {f"{prefix}lost": 0} | dict(line)
    nats, *counts = (number_in(line, prefix + name, where) for name in SUMS)
    evaluation = Evaluation(nats, *map(int, counts))
    if min(evaluation.tokens, evaluation.bytes) < 1:
        raise RunError(f"{where}: an evaluation of no tokens ({line})")
    return evaluation


def _scored(directory: Path, config: ExperimentConfig) -> dict[str, Scored]:
    """By split; evaluations on documents of another name are not the run's."""
    found = {}
    for split in ("validation", "test"):
        path = directory / f"evaluation_{split}.json"
        if path.exists():
            where, line = str(path), read_object(path.read_bytes(), str(path))
            step, documents = (int(number_in(line, name, where)) for name in ("step", "documents"))
            if line.get("corpus") == config.data.corpus_name:
                found[split] = Scored(step, line["corpus"], documents, _evaluation(line, where))
    return found
