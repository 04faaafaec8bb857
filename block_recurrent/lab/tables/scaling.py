"""Bits per token against parameters without embedding, for recurrent and plain models."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from block_recurrent.config import ModelConfig
from block_recurrent.lab.tables.layout import (
    FAMILIES,
    Page,
    TextTable,
    count_cell,
    label_logarithmic,
    present,
    short_count,
)
from block_recurrent.lab.tables.naming import column, row_name
from block_recurrent.lab.tables.paper import SCALING, SCALING_COLUMN
from block_recurrent.lab.tables.seed_groups import SeedGroup, group_runs
from block_recurrent.runs import reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DESCRIPTION = (
    "Bits per token on the validation documents against parameters without the embedding. Of "
    "several seeds: mean ± sample standard deviation (number of seeds). @STEP: not finished, the "
    "figure is from that step. The paper's two points are its models of 1.3 B."
)
COLUMNS = {
    "row": lambda group: group.name,
    "parameters": lambda group: f"{group.parameters:,}",
    "recurrent": lambda group: "yes" if is_recurrent(group) else "no",
    "bits/token": lambda group: group.cell("bits_per_token"),
    "steps": SeedGroup.progress,
    "tokens seen": lambda group: count_cell(group.tokens_seen()),
}


def is_recurrent(group: SeedGroup) -> bool:
    """Whether the group's models have recurrent layers."""
    model = group.config.model
    return isinstance(model, ModelConfig) and bool(model.recurrent_layers)


def by_column(groups: Sequence[SeedGroup]) -> dict[str, list[SeedGroup]]:
    """The groups of every corpus and tokenizer, by parameters; the paper's column comes first."""
    columns: dict[str, list[SeedGroup]] = {SCALING_COLUMN: []}
    for group in sorted(groups, key=lambda group: group.parameters):
        columns.setdefault(column(group.config), []).append(group)
    return columns


def make_page(columns: dict[str, list[SeedGroup]]) -> Page:
    """A page with a table for each column."""
    data: dict[str, Any] = {
        "columns": {title: [group.data() for group in found] for title, found in columns.items()},
        "paper": {SCALING_COLUMN: [point._asdict() for point in SCALING]},
        "description": DESCRIPTION,
    }
    return Page(
        {title: _table(title, found) for title, found in columns.items()}, DESCRIPTION, data
    )


def _table(title: str, groups: Sequence[SeedGroup]) -> TextTable:
    rows = [[show(group) for show in COLUMNS.values()] for group in groups]
    if title == SCALING_COLUMN:
        for point in SCALING:
            size, bits = short_count(point.parameters), f"{point.bits_per_token:.2f}"
            rows.append([point.name, size, "yes" if point.recurrent else "no", bits, "", ""])
    return TextTable(list(COLUMNS), rows, ("row",))


def draw(columns: dict[str, list[SeedGroup]], picture: "Figure") -> None:
    """Draws a panel for each column."""
    drawn = {
        title: [group for group in groups if group.final()] for title, groups in columns.items()
    }
    drawn = {title: groups for title, groups in drawn.items() if groups or title == SCALING_COLUMN}
    picture.set_size_inches(1 + 5.5 * len(drawn), 4.8)
    panels = picture.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (title, groups) in zip(panels, drawn.items(), strict=True):
        _draw_runs(panel, groups)
        if title == SCALING_COLUMN:
            _draw_paper(panel)
        panel.set_xscale("log")
        panel.margins(0.12)
        least, greatest = panel.dataLim.intervalx
        # Enough for two ticks, also where all sizes are alike.
        room = 4 if greatest < 2 * least else 1.5
        panel.set_xlim(least / room, greatest * room)
        label_logarithmic(panel.xaxis)
        panel.set_title(title)
        panel.set_xlabel("parameters without embedding")
        panel.set_ylabel("bits per token")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)


def _draw_runs(panel: "Axes", groups: Sequence[SeedGroup]) -> None:
    """Draws a thin line for each row, through its sizes; unfinished runs are hollow."""
    for name in dict.fromkeys(map(_series, groups)):
        members = [group for group in groups if _series(group) == name]
        for group in members:
            color, spread = FAMILIES[group.family], group.summary("bits_per_token").deviation
            place = group.parameters, _mean(group)
            face = color if group.finished else "none"
            panel.errorbar(*place, yerr=spread or 0.0, fmt="o", color=color, mfc=face)
        points = [(group.parameters, _mean(group)) for group in members]
        color = FAMILIES[members[0].family]
        panel.plot(*zip(*points, strict=True), color=color, linewidth=0.8, label=name)


def _mean(group: SeedGroup) -> float:
    mean = group.summary("bits_per_token").mean
    assert mean is not None, group
    return mean


def _series(group: SeedGroup) -> str:
    """What rows of different sizes have in common."""
    return row_name(group.config) if is_recurrent(group) else group.family


def _draw_paper(panel: "Axes") -> None:
    for point in SCALING:
        color = FAMILIES["Rec" if point.recurrent else "XL"]
        place = point.parameters, point.bits_per_token
        panel.plot(*place, "D", color=color, markerfacecolor="none", label=point.name)


def report(found: Sequence[reading.Run], folder: Path) -> None:
    """Prints the tables and writes them, with the picture, into `folder`.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    columns = by_column(group_runs(found))
    present(make_page(columns), partial(draw, columns), folder, "scaling")
