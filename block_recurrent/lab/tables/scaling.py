"""Bits per token against parameters without embedding, for recurrent and plain models."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from block_recurrent.lab.tables.layout import (
    FAMILIES,
    Page,
    TextTable,
    color_of,
    label_logarithmic,
    publish,
    short_count,
)
from block_recurrent.lab.tables.naming import column, is_recurrent, row_name
from block_recurrent.lab.tables.paper import SCALING, SCALING_COLUMN
from block_recurrent.lab.tables.seed_groups import SeedGroup, group_runs, group_table, marker
from block_recurrent.runs.reading import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DESCRIPTION = (
    "Bits per token on the validation documents against parameters without the embedding. Of "
    "several seeds: mean ± sample standard deviation (number of seeds). @STEP: not finished, the "
    "figure is from that step. The paper's two points are its models of 1.3 B."
)
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
        "description": DESCRIPTION,
    }
    tables = {title: _table(title, found) for title, found in columns.items()}
    return Page("scaling", tables, DESCRIPTION, data, {"scaling": partial(draw, columns)})


def _table(title: str, groups: Sequence[SeedGroup]) -> TextTable:
    table = group_table(groups, COLUMNS)
    published = [
        [
            point.name,
            short_count(point.parameters),
            "yes" if point.recurrent else "no",
            f"{point.bits_per_token:.2f}",
            "",
            "",
        ]
        for point in SCALING
        if title == SCALING_COLUMN
    ]
    return table._replace(rows=[*table.rows, *published])


def draw(columns: Mapping[str, Sequence[SeedGroup]], picture: "Figure") -> None:
    """Draws a panel for each column."""
    drawn = {
        title: [group for group in groups if group.final()] for title, groups in columns.items()
    }
    drawn = {title: groups for title, groups in drawn.items() if groups or title == SCALING_COLUMN}
    picture.set_size_inches(1 + 5.5 * len(drawn), 4.8)
    panels = picture.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (title, groups) in zip(panels, drawn.items(), strict=True):
        _draw_runs(panel, groups)
        for point in SCALING if title == SCALING_COLUMN else ():
            color = FAMILIES["Rec" if point.recurrent else "XL"]
            style = {"color": color, "markerfacecolor": "none", "label": point.name}
            panel.plot(point.parameters, point.bits_per_token, "D", **style)
        panel.set_xscale("log")
        panel.margins(0.12)
        least, greatest = panel.dataLim.intervalx
        # Wide enough for two ticks, also if all sizes are alike.
        room = 4 if greatest < 2 * least else 1.5
        panel.set_xlim(least / room, greatest * room)
        label_logarithmic(panel.xaxis)
        panel.set_title(title)
        panel.set_xlabel("parameters without embedding")
        panel.set_ylabel("bits per token")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)


def _draw_runs(panel: "Axes", groups: Sequence[SeedGroup]) -> None:
    """Draws a thin line for each row, through its sizes."""
    lines: dict[str, list[tuple[int, float | None]]] = {}
    for group in groups:
        bits = group.spread("bits_per_token")
        panel.errorbar(group.parameters, bits.mean, yerr=bits.deviation or 0.0, **marker(group))
        name = row_name(group.config) if is_recurrent(group.config) else group.family
        lines.setdefault(name, []).append((group.parameters, bits.mean))
    for name, points in lines.items():
        panel.plot(*zip(*points, strict=True), color=color_of(name), linewidth=0.8, label=name)


def report(found: Sequence[Run], folder: Path) -> None:
    """Prints the tables of runs and writes them, with the picture, into `folder`.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    publish(make_page(by_column(group_runs(found))), folder)
