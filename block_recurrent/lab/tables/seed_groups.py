"""Groups of runs that differ only in their seeds, with the mean and spread of their figures."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from block_recurrent.config import ExperimentConfig
from block_recurrent.lab.tables.layout import MISSING, TextTable, color_of, number_cell
from block_recurrent.lab.tables.naming import distinct_names, is_recurrent, row_name, window_of
from block_recurrent.runs.reading import Point, Run, SelectionError, parameters_without_embedding

RUN_FIGURES = ("step", "tokens_seen", "finished", "tokens_per_second")

LOST_NOTE = (
    "*: the vocabulary loses bytes of the text, so bits per byte cannot be compared with those of "
    "other tokenizers."
)


class Spread(NamedTuple):
    """Mean and spread of several figures.

    Attributes:
      mean: None without figures.
      deviation: sample standard deviation, n - 1 in the denominator; None for fewer than two.
      interval: half the width of the 95 % t-interval of the mean; None for fewer than two.
      n: how many figures.
    """

    mean: float | None
    deviation: float | None
    interval: float | None
    n: int

    def cell(self) -> str:
        """The mean as text, with spread and number if there are several figures."""
        if self.mean is None:
            return MISSING
        if self.deviation is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.deviation:.3f} ({self.n})"


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of `values`."""
    n = len(values)
    if n < 2:
        return Spread(values[0] if values else None, None, None, n)
    deviation = float(np.std(values, ddof=1))
    quantile = float(stats.t.ppf(0.975, n - 1))
    return Spread(float(np.mean(values)), deviation, quantile * deviation / n**0.5, n)


class SeedGroup(NamedTuple):
    """Runs that differ only in their seeds.

    Attributes:
      name: the row's name, with what sets it apart from groups of the same name and column.
      runs: the runs in the order of their seeds.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> ExperimentConfig:
        """The configuration of the first run."""
        return self.runs[0].config

    @property
    def parameters(self) -> int:
        """How many parameters the model has without the embedding."""
        return parameters_without_embedding(self.config.model)

    @property
    def finished(self) -> bool:
        """Whether any run is finished."""
        return any(run.finished for run in self.runs)

    @property
    def final(self) -> list[tuple[Run, Point]]:
        """The runs that figures are taken from, each with its last validation figures.

        These are the finished runs. If there are none, they are all runs that have been evaluated,
        at the last step at which each of them was.
        """
        if self.finished:
            return [(run, run.points[-1]) for run in self.runs if run.finished]
        steps = [{point.step for point in run.points} for run in self.runs if run.points]
        last = max(set.intersection(*steps), default=None) if steps else None
        return [(run, point) for run in self.runs for point in run.points if point.step == last]

    def spread(self, figure: str) -> Spread:
        """Mean and spread at the end of a figure of `Evaluation`, such as "bits_per_token"."""
        return spread([getattr(point.evaluation, figure) for _, point in self.final])

    @property
    def lost_mark(self) -> str:
        """Follows bits per byte of text of which the vocabulary has lost bytes, see `LOST_NOTE`."""
        return "*" if any(point.evaluation.lost for _, point in self.final) else ""

    @property
    def step_mark(self) -> str:
        """Follows the figures of a group without a finished run: the step they are from."""
        return "" if self.finished or not self.final else f" @{self.final[0][1].step:,}"

    def cell(self, figure: str) -> str:
        """A figure at the end as text, with marks."""
        lost = self.lost_mark if figure == "bits_per_byte" else ""
        return self.spread(figure).cell() + lost + self.step_mark

    def tokens_seen(self) -> int | None:
        """Training targets seen before the last figures, the mean over runs."""
        seen = [point.tokens_seen for _, point in self.final]
        return round(sum(seen) / len(seen)) if seen else None

    def tokens_per_second(self) -> float | None:
        """Training targets a second, the median over the runs' medians."""
        speeds = [run.tokens_per_second for run in self.runs if run.tokens_per_second]
        return float(np.median(speeds)) if speeds else None

    def progress(self) -> str:
        """The step of the last figures and how many there will be, such as "2/4"."""
        total = self.config.training.num_steps
        if not self.final:
            return f"{max(run.step for run in self.runs):,}/{total:,}, not evaluated"
        last = max(point.step for _, point in self.final)
        return f"{last:,}" if self.finished else f"{last:,}/{total:,}"

    def data(self) -> dict[str, Any]:
        """The group, its figures and its runs as JSON values."""
        return {
            "name": self.name,
            "row": row_name(self.config),
            "corpus": self.config.data.corpus_name,
            "tokenizer": self.config.data.tokenizer,
            "parameters_without_embedding": self.parameters,
            "segment": self.config.data.segment_length,
            "window": window_of(self.config),
            "num_steps": self.config.training.num_steps,
            "finished": self.finished,
            "tokens_seen": self.tokens_seen(),
            "tokens_per_second": self.tokens_per_second(),
            "bits_per_token": self.spread("bits_per_token"),
            "bits_per_byte": self.spread("bits_per_byte"),
            "runs": [
                {
                    "workdir": str(run.workdir),
                    "training_seed": run.config.training.seed,
                    "data_seed": run.config.data.seed,
                    **{name: getattr(run, name) for name in RUN_FIGURES},
                    "validation": [
                        {"step": step, "tokens_seen": tokens, **evaluation.metrics()}
                        for step, tokens, evaluation in run.points
                    ],
                    "evaluations": {
                        split: {**scored._asdict(), "evaluation": scored.evaluation.metrics()}
                        for split, scored in run.scored.items()
                    },
                }
                for run in self.runs
            ],
        }


# What tables say of a group, by the column's title.
CELLS: Mapping[str, Callable[[SeedGroup], str]] = {
    "row": lambda group: group.name,
    "parameters": lambda group: f"{group.parameters:,}",
    "segment": lambda group: f"{group.config.data.segment_length:,}",
    "window": lambda group: number_cell(window_of(group.config), ",", ""),
    "recurrent": lambda group: "yes" if is_recurrent(group.config) else "no",
    "bits/token": lambda group: group.cell("bits_per_token"),
    "bits/byte": lambda group: group.cell("bits_per_byte"),
    "steps": SeedGroup.progress,
    "tokens seen": lambda group: number_cell(group.tokens_seen(), ","),
    "tokens/s": lambda group: number_cell(group.tokens_per_second(), ",.0f"),
}


def cells(group: SeedGroup, columns: Sequence[str]) -> list[str]:
    """A group's cells in some columns of `CELLS`."""
    return [CELLS[column](group) for column in columns]


def group_table(groups: Sequence[SeedGroup], columns: Sequence[str]) -> TextTable:
    """A table of groups with some columns of `CELLS`."""
    return TextTable(columns, [cells(group, columns) for group in groups], ("row",))


def marker(group: SeedGroup) -> dict[str, Any]:
    """How a group's figures are drawn: in its family's colour; hollow if no run is finished."""
    color = color_of(group.name)
    return {"fmt": "o", "color": color, "markerfacecolor": color if group.finished else "none"}


def without_seeds(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with both seeds set to zero."""
    data = dataclasses.replace(config.data, seed=0)
    training = dataclasses.replace(config.training, seed=0)
    return dataclasses.replace(config, data=data, training=training)


def group_runs(runs: Iterable[Run]) -> list[SeedGroup]:
    """Runs grouped by their configuration without the seeds, in the order of the first runs.

    Raises:
      SelectionError: two runs have the same configuration and the same seeds.
    """
    groups: dict[ExperimentConfig, dict[tuple[int, int], Run]] = {}
    for run in runs:
        seeds = groups.setdefault(without_seeds(run.config), {})
        if run.seeds in seeds:
            raise SelectionError(
                f"{seeds[run.seeds].workdir} and {run.workdir} hold the same run: configuration "
                "and seeds are equal; leave one out"
            )
        seeds[run.seeds] = run
    return [
        SeedGroup(name, tuple(seeds[key] for key in sorted(seeds)))
        for name, seeds in zip(distinct_names(list(groups)), groups.values(), strict=True)
    ]
