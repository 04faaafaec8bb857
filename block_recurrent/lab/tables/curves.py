"""Validation bits per byte against training tokens seen, over seeds, and paired differences."""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from block_recurrent.lab.tables.layout import (
    MISSING,
    Draw,
    Page,
    TextTable,
    color_of,
    publish,
    short_count,
)
from block_recurrent.lab.tables.seed_groups import (
    SeedGroup,
    cells,
    common_steps,
    group_runs,
    spread,
)
from block_recurrent.runs.reading import Point, Run, SelectionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "bits_per_byte"  # the figure of `Evaluation` that the curves show
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
DESCRIPTION = (
    "Validation bits per byte at the end of training. Deviation is the sample standard deviation "
    "over seeds (n - 1). A difference is a row's figure minus that of the reference with the same "
    "seeds, for finished runs, or runs at the same step; its 95 % interval is the t-interval over "
    "n pairs of seeds: it is wide for small n, and says nothing of other corpora or sizes. @STEP: "
    "not finished, the figures are from that step. In the picture a thin line is a seed, a thick "
    "line the mean of all seeds, a band their range from least to greatest."
)
GROUP_COLUMNS = ("row", "parameters", "steps", "tokens seen")
SPREAD_COLUMNS = ("mean", "deviation", "n", "by seed")
DIFFERENCE_COLUMNS = ("difference", "its deviation", "95 % interval", "n pairs")


class Section(NamedTuple):
    """The rows of one corpus.

    Attributes:
      groups: the groups of runs, one for each row.
      reference: the group that differences are taken to, if this corpus has it.
    """

    groups: list[SeedGroup]
    reference: SeedGroup | None

    def style(self, group: SeedGroup) -> dict[str, Any]:
        """A family's colour, and line and marker by the row's number in the family."""
        alike = [other for other in self.groups if other.family == group.family]
        line, marker = STYLES[alike.index(group) % len(STYLES)]
        return {"color": color_of(group.name), "linestyle": line, "marker": marker}

    def differences(self, group: SeedGroup) -> dict[tuple[int, int], float]:
        """Differences to the reference by seeds; none for the reference itself."""
        if self.reference is None or group is self.reference:
            return {}
        theirs = {run.seeds: (run, point) for run, point in self.reference.final()}
        found = {}
        for run, point in group.final():
            if run.seeds in theirs:
                other, its_point = theirs[run.seeds]
                if (run.finished and other.finished) or point.step == its_point.step:
                    found[run.seeds] = _bits(point) - _bits(its_point)
        return found


def _bits(point: Point) -> float:
    return getattr(point.evaluation, FIGURE)


def arrange(groups: Sequence[SeedGroup], against: str) -> dict[str, Section]:
    """The rows of every corpus, and the one whose name is or begins with `against`.

    Raises:
      SelectionError: several rows of a corpus have a name that begins so, or no row has.
    """
    corpora: dict[str, list[SeedGroup]] = {}
    for group in groups:
        corpora.setdefault(group.config.data.corpus_name, []).append(group)
    sections = {
        name: Section(found, _reference(name, found, against)) for name, found in corpora.items()
    }
    if not any(section.reference for section in sections.values()):
        names = ", ".join(dict.fromkeys(group.name for group in groups))
        raise SelectionError(f"--against={against}: no row has this name; there are {names}")
    return sections


def _reference(name: str, groups: Sequence[SeedGroup], against: str) -> SeedGroup | None:
    exact = [group for group in groups if group.name == against]
    found = exact or [group for group in groups if group.name.startswith(against)]
    if len(found) > 1:
        names = "; ".join(group.name for group in found)
        raise SelectionError(
            f"--against={against}: on {name} several rows begin so: {names}; write more of the "
            "name of one, or give fewer work directories"
        )
    return found[0] if found else None


def make_page(sections: Mapping[str, Section], draw: Draw) -> Page:
    """A page with a table for each corpus."""
    tables = {}
    for name, section in sections.items():
        title = f": differences to {section.reference.name}" if section.reference else ""
        rows = [
            [
                *cells(group, GROUP_COLUMNS),
                *_spread_cells(group),
                *_difference_cells(section, group),
            ]
            for group in section.groups
        ]
        columns = (*GROUP_COLUMNS, *SPREAD_COLUMNS, *DIFFERENCE_COLUMNS)
        tables[name + title] = TextTable(columns, rows, ("row", "by seed"))
    data = {
        "figure": FIGURE,
        "corpora": {
            name: {
                "reference": section.reference and section.reference.name,
                "rows": [
                    {**group.data(), "difference": _difference_data(section, group)}
                    for group in section.groups
                ],
            }
            for name, section in sections.items()
        },
        "description": DESCRIPTION,
    }
    return Page("curves", tables, DESCRIPTION, data, {"curves": draw})


def _cell(value: float | None, sign: str = "") -> str:
    return MISSING if value is None else f"{value:{sign}.4f}"


def _spread_cells(group: SeedGroup) -> list[str]:
    found = group.spread(FIGURE)
    # Both seeds, of parameters and of data, or one number if they are equal.
    seeds = [
        f"{'/'.join(map(str, dict.fromkeys(run.seeds)))}: {_bits(point):.4f}"
        for run, point in group.final()
    ]
    mean = _cell(found.mean) + group.step_mark
    return [mean, _cell(found.deviation), str(found.n), ", ".join(seeds) or MISSING]


def _difference_cells(section: Section, group: SeedGroup) -> list[str]:
    if group is section.reference:
        return ["reference", "", "", ""]
    found = spread(list(section.differences(group).values()))
    interval = MISSING if found.bounds is None else "[{:+.4f}, {:+.4f}]".format(*found.bounds)
    return [_cell(found.mean, "+"), _cell(found.deviation), interval, str(found.n)]


def _difference_data(section: Section, group: SeedGroup) -> dict[str, Any]:
    differences = section.differences(group)
    found = spread(list(differences.values()))
    pairs = [
        {"training_seed": training, "data_seed": data, "difference": difference}
        for (training, data), difference in differences.items()
    ]
    return {**found._asdict(), "bounds": found.bounds, "pairs": pairs}


def draw(sections: Mapping[str, Section], picture: "Figure") -> None:
    """Draws a column for each corpus: the curves, and below them the paired differences."""
    picture.set_size_inches(1 + 5.5 * len(sections), 7.5)
    panels = picture.subplots(2, len(sections), squeeze=False, sharex="col", height_ratios=(2, 1))
    for above, below, (name, section) in zip(*panels, sections.items(), strict=True):
        for group in section.groups:
            _draw_curves(above, section, group)
            _draw_differences(below, section, group)
        above.set_title(name)
        above.set_ylabel("validation bits per byte")
        above.legend(frameon=False)
        below.axhline(0.0, color="black", linewidth=0.8)
        if section.reference:
            below.set_ylabel(f"minus {section.reference.name}, same seed")
        below.set_xlabel("training tokens seen")
        below.xaxis.set_major_formatter(lambda value, _: short_count(value) if value else "0")
        for panel in (above, below):
            panel.grid(alpha=0.3)


def _draw_curves(panel: "Axes", section: Section, group: SeedGroup) -> None:
    style = section.style(group)
    for run in group.runs:
        tokens = [point.tokens_seen for point in run.points]
        bits = list(map(_bits, run.points))
        panel.plot(tokens, bits, color=style["color"], linewidth=0.6, alpha=0.6)
    evaluated = [run for run in group.runs if run.points]
    if steps := common_steps(evaluated):
        tokens, bits = _at(steps, evaluated)
        label = f"{group.name}, {short_count(group.parameters)}, n = {len(evaluated)}"
        panel.plot(tokens, bits.mean(0), **style, markersize=4, label=label)
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        panel.fill_between(tokens, bits.min(0), bits.max(0), **band)


def _draw_differences(panel: "Axes", section: Section, group: SeedGroup) -> None:
    """Draws paired differences at the steps at which all pairs were evaluated."""
    if section.reference is None or group is section.reference:
        return
    theirs = {run.seeds: run for run in section.reference.runs if run.points}
    own = [run for run in group.runs if run.points and run.seeds in theirs]
    paired = [theirs[run.seeds] for run in own]
    if steps := common_steps([*own, *paired]):
        style = section.style(group)
        tokens, bits = _at(steps, own)
        differences = bits - _at(steps, paired)[1]
        panel.plot(tokens, differences.T, color=style["color"], linewidth=0.6, alpha=0.6)
        panel.plot(tokens, differences.mean(0), **style, markersize=4)


def _at(steps: Sequence[int], found: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens seen, the mean over runs, [steps], and bits per byte, [runs, steps]."""
    points = [[point for point in run.points if point.step in steps] for run in found]
    tokens = np.array([[point.tokens_seen for point in line] for line in points])
    return tokens.mean(0), np.array([list(map(_bits, line)) for line in points])


def arrange_by(found: Sequence[Run], against: str, by: str) -> dict[Any, dict[str, Section]]:
    """The rows of every corpus for each value of a parameter, in order; runs are compared within.

    Raises:
      SelectionError: what `group_runs` and `arrange` raise.
    """
    parts: dict[Any, list[Run]] = {}
    for run in found:
        parts.setdefault(reduce(getattr, by.split("."), run.config), []).append(run)
    values = sorted(parts, key=lambda value: (str(type(value)), value))
    return {value: arrange(group_runs(parts[value]), against) for value in values}


def draw_by(arranged: Mapping[Any, Mapping[str, Section]], by: str, picture: "Figure") -> None:
    """Draws a panel for each corpus: paired differences against the values of a parameter.

    A point is a pair of seeds, a line the mean, a bar its 95 % interval.
    """
    corpora = list(dict.fromkeys(name for sections in arranged.values() for name in sections))
    picture.set_size_inches(1 + 5.5 * len(corpora), 4.5)
    (panels,) = picture.subplots(1, len(corpora), squeeze=False)
    for panel, corpus in zip(panels, corpora, strict=True):
        lines: dict[str, dict[int, list[float]]] = {}
        references: set[str] = set()
        for x, sections in enumerate(arranged.values()):
            section = sections.get(corpus, Section([], None))
            if section.reference:
                references.add(section.reference.name)
            for group in section.groups:
                if differences := list(section.differences(group).values()):
                    lines.setdefault(group.name, {})[x] = differences
        for (name, points), (line, marker) in zip(lines.items(), cycle(STYLES), strict=False):
            found = list(map(spread, points.values()))
            means, errors = [f.mean or 0.0 for f in found], [f.interval or 0.0 for f in found]
            style = {"color": color_of(name), "linestyle": line, "marker": marker, "capsize": 3}
            panel.errorbar(list(points), means, yerr=errors, label=name, **style)
            for x, differences in points.items():
                panel.plot(
                    [x] * len(differences), differences, ".", color=color_of(name), alpha=0.5
                )
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.set_title(corpus)
        panel.set_xticks(range(len(arranged)), list(map(str, arranged)))
        panel.set_xlabel(by)
        panel.set_ylabel(f"bits per byte minus {', '.join(sorted(references))}, same seed")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)


def report(found: Sequence[Run], against: str, folder: Path, by: str | None = None) -> None:
    """Prints the tables of runs and writes them, with the picture, into `folder`.

    Args:
      found: the runs.
      against: the reference row, or how its name begins.
      folder: where the files go.
      by: a parameter such as "model.window"; only runs with the same value are compared.

    Raises:
      SelectionError: what `group_runs` and `arrange` raise.
    """
    if by is None:
        sections = arrange(group_runs(found), against)
        drawing = partial(draw, sections)
    else:
        arranged = arrange_by(found, against, by)
        drawing = partial(draw_by, arranged, by)
        sections = {
            f"{name}, {by} = {value}": section
            for value, corpora in arranged.items()
            for name, section in corpora.items()
        }
    publish(make_page(sections, drawing), folder)
