"""Bits per token against parameters without embedding, for recurrent and plain models.

    block-recurrent scaling runs/*_rec runs/*_slide

A table and a panel for each corpus and tokenizer. The figures of an unfinished run are marked with
its step.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scipy import stats

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.tables.layout import (
    FAMILIES,
    Page,
    color_of,
    finish,
    label_logarithmic,
    publish,
    short_count,
)
from block_recurrent.lab.tables.naming import column, family, is_recurrent, row_name
from block_recurrent.lab.tables.options import parse_runs
from block_recurrent.lab.tables.paper import SCALING, SCALING_COLUMN
from block_recurrent.lab.tables.seed_groups import (
    SeedGroup,
    group_runs,
    group_table,
    marker,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DESCRIPTION = (
    "Bits per token on the validation documents against parameters without the embedding. Of "
    "several seeds: mean ± sample standard deviation (number of seeds). @STEP: not finished, the "
    "figure is from that step. The paper's two points are its models of 1.3 B."
)
TITLE_WIDTH = 50  # letters that fit above a panel
COLUMNS = ("row", "parameters", "recurrent", "bits/token", "steps", "tokens seen")


def by_column(groups: Sequence[SeedGroup]) -> dict[str, list[SeedGroup]]:
    """The groups of every corpus and tokenizer, by parameters; the paper's column comes first."""
    columns: dict[str, list[SeedGroup]] = {SCALING_COLUMN: []}
    for group in sorted(groups, key=lambda group: group.parameters):
        columns.setdefault(column(group.config), []).append(group)
    return columns


def make_page(columns: Mapping[str, Sequence[SeedGroup]]) -> Page:
    """A page with a table for each column."""
    data = {
        "columns": {title: [group.data() for group in found] for title, found in columns.items()},
        "paper": {SCALING_COLUMN: SCALING},
    }
    tables = {title: group_table(found, COLUMNS) for title, found in columns.items()}
    tables[SCALING_COLUMN].rows.extend(
        [
            point.name,
            short_count(point.parameters),
            "yes" if point.recurrent else "no",
            f"{point.bits_per_token:.2f}",
            "",
            "",
        ]
        for point in SCALING
    )
    found = [f"{title}: {words}." for title in columns for words in findings(columns[title])]
    text = " ".join([DESCRIPTION, *found])
    return Page("scaling", tables, text, data, {"scaling": partial(draw, columns)})


def draw(columns: Mapping[str, Sequence[SeedGroup]], picture: "Figure") -> None:
    """Draws a panel for each column that has finished runs, or the paper's if none has."""
    drawn = {title: [group for group in groups if group.final] for title, groups in columns.items()}
    drawn = {title: groups for title, groups in drawn.items() if groups} or {SCALING_COLUMN: []}
    picture.set_size_inches(1 + 5.5 * len(drawn), 4.8)
    panels = picture.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (title, groups) in zip(panels, drawn.items(), strict=True):
        _draw_runs(panel, groups)
        for point in SCALING if title == SCALING_COLUMN else ():
            color = FAMILIES["Rec" if point.recurrent else "XL"]
            style = {"color": color, "markerfacecolor": "none", "label": point.name}
            panel.plot(point.parameters, point.bits_per_token, "D", **style)
        shown = "\n".join([*textwrap.wrap(" ".join(findings(groups)[:1]), TITLE_WIDTH), title])
        panel.set(title=shown, xlabel="parameters without embedding", ylabel="bits per token")
        panel.set_xscale("log")
        panel.margins(0.12)
        least, greatest = panel.dataLim.intervalx
        # Wide enough for two ticks, also if all sizes are alike.
        room = 4 if greatest < 2 * least else 1.5
        panel.set_xlim(least / room, greatest * room)
        label_logarithmic(panel.xaxis)
    finish(panels)


def findings(groups: Sequence[SeedGroup]) -> list[str]:
    """How far a recurrent row is from Slide at the sizes that both have; nothing for other rows.

    The first finding says at how many sizes the 95 % interval of the difference, over seeds, leaves
    out zero; there is none if the sign differs. The last says how the difference changes with size.
    """
    recurrent, plain = {}, {}
    for group in groups:
        if is_recurrent(group.config):
            recurrent.setdefault(row_name(group.config), {})[group.config.model.model_size] = group
        elif family(group.name) == "Slide":
            plain.setdefault(group.name, {})[group.config.model.model_size] = group
    if len(recurrent) != 1 or len(plain) != 1:
        return []
    ((name, ours),), ((other, theirs),) = recurrent.items(), plain.items()
    differences = {
        theirs[size].parameters: _differences(ours[size], theirs[size])
        for size in ours.keys() & theirs.keys()
    }
    return [*_gaps(name, other, differences), *_trend(name, other, differences)]


def _gaps(name: str, other: str, differences: Mapping[int, Sequence[float]]) -> list[str]:
    gaps = [spread(found) for found in differences.values() if found]
    means = [gap.mean or 0.0 for gap in gaps]
    if not means or min(means) < 0 < max(means):
        return []
    certain = sum(gap.interval is not None and gap.interval < abs(gap.mean or 0) for gap in gaps)
    side, distances = "above" if max(means) > 0 else "below", sorted(map(abs, means))
    ends = " to ".join(dict.fromkeys(f"{end:.2f}" for end in (distances[0], distances[-1])))
    sizes = "one size" if len(means) == 1 else f"{len(means)} sizes"
    seeds = f"beyond the 95 % interval of seeds at {certain or 'none'}"
    return [f"{name} is {ends} bits a token {side} {other} at {sizes}, {seeds}"]


def _trend(name: str, other: str, differences: Mapping[int, Sequence[float]]) -> list[str]:
    trend = fit_trend(differences)
    if trend is None:
        return []
    slope, interval = trend
    change = f"changes by {slope:+.3f} ± {interval:.3f} (95 %) bits a token"
    return [f"With ten times the parameters {name} minus {other} {change}"]


def fit_trend(differences: Mapping[int, Sequence[float]]) -> tuple[float, float] | None:
    """A line through differences, each of one seed, by the logarithm of parameters.

    Args:
      differences: by the number of parameters.

    Returns:
      Its slope, for ten times the parameters, and half the width of the slope's 95 % t-interval.
      None for a single size or fewer than three differences.
    """
    points = [
        (math.log10(parameters), value)
        for parameters, found in differences.items()
        for value in found
    ]
    if len(points) < 3 or len({x for x, _ in points}) < 2:
        return None
    line: Any = stats.linregress([x for x, _ in points], [y for _, y in points])
    return float(line.slope), float(stats.t.ppf(0.975, len(points) - 2) * line.stderr)


def _differences(group: SeedGroup, other: SeedGroup) -> list[float]:
    """Bits per token of a group minus those of another, for each pair of seeds that both have."""
    first, second = (
        {run.seeds: point.evaluation.bits_per_token for run, point in x.final}
        for x in (group, other)
    )
    return [first[seeds] - second[seeds] for seeds in first.keys() & second.keys()]


def _draw_runs(panel: "Axes", groups: Sequence[SeedGroup]) -> None:
    """Draws a thin line for each row, through its sizes."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for group in groups:
        bits = group.spread("bits_per_token")
        if bits.mean is not None:
            panel.errorbar(group.parameters, bits.mean, yerr=bits.deviation or 0.0, **marker(group))
            recurrent = is_recurrent(group.config)
            name = row_name(group.config) if recurrent else family(group.name)
            lines.setdefault(name, []).append((group.parameters, bits.mean))
    for name, points in lines.items():
        panel.plot(*zip(*points, strict=True), color=color_of(name), linewidth=0.8, label=name)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments, runs = parse_runs(Parser(description=__doc__), argv, "runs/scaling")
    publish(make_page(by_column(group_runs(runs))), arguments.output)
    return 0
