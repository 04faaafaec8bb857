"""Validation bits per byte against training tokens, over seeds, and paired differences.

    block-recurrent curves runs/rec_seed_* runs/slide_seed_* --against=Slide

    block-recurrent curves runs/window_* --against=Slide --by=model.window

Runs that differ only in their seeds are one row. A difference is taken between runs with the same
seed, the row's figure minus the reference's: below zero the row is better. With `--by`, runs are
compared if that parameter is equal, and the picture shows the differences against it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.gin_files import PARAMETERS
from block_recurrent.lab.tables.layout import (
    MISSING,
    Draw,
    Page,
    TextTable,
    finish,
    interval_cell,
    number_cell,
    publish,
    short_count,
    styles,
)
from block_recurrent.lab.tables.options import parse_runs
from block_recurrent.lab.tables.seed_groups import (
    LOST_NOTE,
    SeedGroup,
    cells,
    group_runs,
    spread,
)
from block_recurrent.runs.reading import Run, SelectionError, same_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "bits_per_byte"  # the figure of `Evaluation` that the curves show
DESCRIPTION = (
    "Validation bits per byte at the end of training. Deviation is the sample standard deviation "
    "over seeds (n - 1). A difference is a row's figure minus that of the reference with the same "
    "seeds, both after the last number of training tokens at which both were evaluated, to 1 %. "
    "Its 95 % interval is the t-interval over n pairs of seeds: it is wide for small n, and says "
    "nothing of other corpora or sizes. @STEP: not finished, the figures are from that step. In "
    f"the picture thin lines are seeds, and a thick line their mean. {LOST_NOTE}"
)
GROUP_COLUMNS = ("row", "parameters", "steps", "tokens seen")
SPREAD_COLUMNS = ("mean", "deviation", "n", "by seed")
DIFFERENCE_COLUMNS = ("difference", "its deviation", "95 % interval", "n pairs", "after tokens")


class Sample(NamedTuple):
    """A point of a curve.

    Attributes:
      step: of the run, or of the reference if the curve is that of a difference.
      tokens: training targets seen.
      bits: the figure of the run, or how much it is above the reference's.
    """

    step: int
    tokens: float
    bits: float


class Section(NamedTuple):
    """The rows of one corpus.

    Attributes:
      groups: the groups of runs, one for each row.
      reference: the group that differences are taken to, if this corpus has it.
    """

    groups: list[SeedGroup]
    reference: SeedGroup | None

    def styled(self) -> list[tuple[SeedGroup, dict[str, Any]]]:
        """The groups with their colours, lines and markers."""
        return list(zip(self.groups, styles([group.name for group in self.groups]), strict=True))

    def pairs(self, group: SeedGroup) -> list[tuple[Run, Run]]:
        """The evaluated runs, each with the reference's of the same seeds; none for itself."""
        if self.reference is None or group is self.reference:
            return []
        theirs = {run.seeds: run for run in self.reference.runs if run.points}
        return [
            (run, theirs[run.seeds]) for run in group.runs if run.points and run.seeds in theirs
        ]

    def differences(self, group: SeedGroup) -> dict[tuple[int, int], Sample]:
        """Differences to the reference by seeds, each after the last tokens that both have seen."""
        found = {run.seeds: difference_curve(run, other) for run, other in self.pairs(group)}
        return {seeds: curve[-1] for seeds, curve in found.items() if curve}


def curve_of(run: Run) -> list[Sample]:
    """The figures of a run at all its evaluations."""
    return [
        Sample(step, tokens, getattr(evaluation, FIGURE)) for step, tokens, evaluation in run.points
    ]


def difference_curve(run: Run, other: Run) -> list[Sample]:
    """The differences of two runs, wherever both were evaluated after the same tokens."""
    found, theirs = [], curve_of(other)
    for own in curve_of(run):
        nearest = min(theirs, key=lambda its, own=own: abs(its.tokens - own.tokens))
        if same_tokens(own.tokens, nearest.tokens):
            found.append(Sample(nearest.step, own.tokens, own.bits - nearest.bits))
    return found


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
    tables, corpora, apart = {}, {}, []
    columns = (*GROUP_COLUMNS, *SPREAD_COLUMNS, *DIFFERENCE_COLUMNS)
    for name, section in sections.items():
        reference = section.reference and section.reference.name
        title = f"{name}: differences to {reference}" if reference else name
        rows, data = [], []
        for group in section.groups:
            apart += [
                f"{run.workdir} ({run.points[-1].tokens_seen:,} tokens) and {other.workdir} "
                f"({other.points[-1].tokens_seen:,})"
                for run, other in section.pairs(group)
                if not difference_curve(run, other)
            ]
            difference, last = _difference(section.differences(group))
            data.append({**group.data(), "difference": difference})
            if group is section.reference:
                last = ["reference", *[""] * (len(DIFFERENCE_COLUMNS) - 1)]
            rows.append([*cells(group, GROUP_COLUMNS), *_spread_cells(group), *last])
        tables[title] = TextTable(columns, rows, ("row", "by seed"))
        corpora[name] = {"reference": reference, "rows": data}
    data = {"figure": FIGURE, "corpora": corpora}
    description = DESCRIPTION
    if apart:
        description += f" Not compared, at no time after the same tokens: {'; '.join(apart)}."
    return Page("curves", tables, description, data, {"curves": draw})


def _spread_cells(group: SeedGroup) -> list[str]:
    found = group.spread(FIGURE)
    # Both seeds, of parameters and of data, or one number if they are equal.
    seeds = [
        f"{'/'.join(map(str, dict.fromkeys(run.seeds)))}: {getattr(point.evaluation, FIGURE):.4f}"
        for run, point in group.final
    ]
    mean = number_cell(found.mean) + group.lost_mark + group.step_mark
    return [mean, number_cell(found.deviation), str(found.n), ", ".join(seeds) or MISSING]


def _difference(differences: Mapping[tuple[int, int], Sample]) -> tuple[dict[str, Any], list[str]]:
    """The differences to the reference by seeds, as JSON values and as cells."""
    found = spread([sample.bits for sample in differences.values()])
    bounds = None
    if found.mean is not None and found.interval is not None:
        bounds = found.mean - found.interval, found.mean + found.interval
    pairs = [
        {"training_seed": seed, "data_seed": data, "tokens": tokens, "difference": bits}
        for (seed, data), (_, tokens, bits) in differences.items()
    ]
    tokens = dict.fromkeys(short_count(sample.tokens) for sample in differences.values())
    return {**found._asdict(), "bounds": bounds, "pairs": pairs}, [
        number_cell(found.mean, "+.4f"),
        number_cell(found.deviation),
        interval_cell(*bounds) if bounds else MISSING,
        str(found.n),
        ", ".join(tokens) or MISSING,
    ]


def draw(sections: Mapping[str, Section], picture: "Figure") -> None:
    """Draws a column for each corpus: the curves, and below them the paired differences."""
    picture.set_size_inches(1 + 5.5 * len(sections), 7.5)
    panels = picture.subplots(2, len(sections), squeeze=False, sharex="col", height_ratios=(1, 1))
    for above, below, (name, section) in zip(*panels, sections.items(), strict=True):
        for group, style in section.styled():
            evaluated = [run for run in group.runs if run.points]
            label = f"{group.name}, {short_count(group.parameters)}, n = {len(evaluated)}"
            _draw_lines(above, map(curve_of, evaluated), style | {"label": label})
            _draw_lines(below, starmap(difference_curve, section.pairs(group)), style)
        above.set(title=name, ylabel="validation bits per byte")
        below.axhline(0.0, color="black", linewidth=0.8)
        if section.reference:
            below.set_ylabel(f"minus {section.reference.name}, same seed (below 0: better)")
        below.set_xlabel("training tokens seen")
        below.xaxis.set_major_formatter(lambda value, _: short_count(value) if value else "0")
    finish(panels.flat)


def _draw_lines(panel: "Axes", curves: Iterable[list[Sample]], style: dict[str, Any]) -> None:
    """Draws thin curves, and their mean at the steps that all of them have."""
    found = [{sample.step: sample[1:] for sample in curve} for curve in curves]
    for curve in found:
        values = np.array(list(curve.values())).reshape(-1, 2)
        panel.plot(*values.T, color=style["color"], linewidth=0.6, alpha=0.4)
    if steps := sorted(set[int].intersection(*map(set, found)) if found else ()):
        values = np.array([[curve[step] for step in steps] for curve in found])
        tokens, mean = values.mean(0).T
        panel.plot(tokens, mean, **style, markersize=4)


def arrange_by(runs: Sequence[Run], against: str, by: str) -> dict[Any, dict[str, Section]]:
    """The rows of every corpus for each value of a parameter, in order; runs are compared within.

    Raises:
      SelectionError: what `group_runs` and `arrange` raise.
    """
    parts: dict[Any, list[Run]] = {}
    for run in runs:
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
                if differences := [d.bits for d in section.differences(group).values()]:
                    lines.setdefault(group.name, {})[x] = differences
        for (name, points), style in zip(lines.items(), styles(list(lines)), strict=True):
            found = list(map(spread, points.values()))
            means, errors = [f.mean or 0.0 for f in found], [f.interval or 0.0 for f in found]
            panel.errorbar(list(points), means, yerr=errors, label=name, capsize=3, **style)
            for x, differences in points.items():
                dots = {"color": style["color"], "alpha": 0.5}
                panel.plot([x] * len(differences), differences, ".", **dots)
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(arranged)), list(map(str, arranged)))
        label = f"bits per byte minus {', '.join(sorted(references))} (below 0: better)"
        panel.set(title=corpus, xlabel=by, ylabel=label)
    finish(panels)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--against", default="Slide", metavar="ROW", help="reference row, or how its name begins"
    )
    parser.add_argument(
        "--by", choices=PARAMETERS, metavar="PARAMETER", help="such as model.window"
    )
    arguments, runs = parse_runs(parser, argv, "runs/curves")
    by = arguments.by
    if by is None:
        sections = arrange(group_runs(runs), arguments.against)
        drawing = partial(draw, sections)
    else:
        arranged = arrange_by(runs, arguments.against, by)
        drawing = partial(draw_by, arranged, by)
        sections = {
            f"{name}, {by} = {value}": section
            for value, corpora in arranged.items()
            for name, section in corpora.items()
        }
    publish(make_page(sections, drawing), arguments.output)
    return 0
