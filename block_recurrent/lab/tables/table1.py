"""The paper's Table 1 from work directories, beside the paper's figures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.lab.tables.layout import (
    FAMILIES,
    MISSING,
    Page,
    TextTable,
    count_cell,
    family,
    present,
    short_count,
)
from block_recurrent.lab.tables.naming import (
    COLUMNS,
    column,
    paper_row,
    paper_rows,
    row_name,
    window_of,
)
from block_recurrent.lab.tables.paper import LENGTH, TITLES, published_cell, row_figures
from block_recurrent.lab.tables.rows import TableRow
from block_recurrent.lab.tables.seed_groups import SeedGroup, group_runs
from block_recurrent.runs import reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CORPORA = {title: name for name, title in TITLES.items() if title in COLUMNS.values()}
REFERENCE = "Slide:13L"
SEE_PAPER = "see paper"
LEFT = ("row",)
DESCRIPTION = (
    "Bits per token on the validation documents at the end of training, beside the paper's figures "
    f"(Hutchins et al. 2022, {LENGTH}). Of several seeds: mean ± sample "
    "standard deviation (number of seeds). @STEP: not finished, the figure is from that step. "
    f"{MISSING}: no run. {SEE_PAPER}: the paper has a figure that could not be verified. Figures "
    "of tokens are comparable only with the same vocabulary. Step time is the time of a token "
    f"relative to {REFERENCE}'s on the same corpus, from the medians of tokens per second, which "
    "is fair if both ran on the same machine."
)


class Placement(NamedTuple):
    """Which place in the tables each group has.

    Attributes:
      cells: the groups that fill the paper's table, by the row's and the column's name.
      others: all other groups, by column.
    """

    cells: dict[tuple[str, str], SeedGroup]
    others: dict[str, list[SeedGroup]]

    def step_time(self, row: str) -> float | None:
        """A row's step time relative to the reference's, the median over columns that have both."""
        ratios = [
            theirs / own
            for title in CORPORA
            if (own := self._speed(row, title)) and (theirs := self._speed(REFERENCE, title))
        ]
        return median(ratios) if ratios else None

    def _speed(self, row: str, title: str) -> float | None:
        group = self.cells.get((row, title))
        return group.tokens_per_second() if group else None


def arrange(groups: Sequence[SeedGroup]) -> Placement:
    """Finds every group its place.

    Where several configurations fit one cell, the one that was trained on most tokens has it.
    """
    placement = Placement({}, {})
    for group in sorted(groups, key=lambda group: -(group.tokens_seen() or 0)):
        row, title = paper_row(group.config), column(group.config)
        if row and title in CORPORA and (row.paper, title) not in placement.cells:
            placement.cells[row.paper, title] = group
        else:
            placement.others.setdefault(title, []).append(group)
    for found in placement.others.values():
        found.sort(key=groups.index)
    return placement


def make_page(placement: Placement) -> Page:
    """The paper's table, and below it a table for each column of other runs."""
    tables = {"": _paper_table(placement)}
    tables |= {
        f"Other runs: {title}": other_table(placement.others[title]) for title in placement.others
    }
    data = {
        "rows": [_row_data(placement, row) for row in paper_rows()],
        "others": {title: [g.data() for g in found] for title, found in placement.others.items()},
        "description": DESCRIPTION,
    }
    return Page(tables, DESCRIPTION, data)


def _paper_table(placement: Placement) -> TextTable:
    titles = [name for title in CORPORA for name in (title, "paper")]
    columns = ["row", "segment", "window", "step time", "paper", *titles, "steps"]
    return TextTable(columns, [_row_cells(placement, row) for row in paper_rows()], LEFT)


def _row_cells(placement: Placement, row: TableRow) -> list[str]:
    time, paper = placement.step_time(row.paper), row_figures(row.paper)._asdict()
    sizes = row.config.data.segment_length, row.config.model.window
    cells = [row.paper, *(f"{size:,}" for size in sizes)]
    cells += [MISSING if time is None else f"{time:.2f}", _published("step_time", paper)]
    groups = {title: placement.cells.get((row.paper, title)) for title in CORPORA}
    for title, group in groups.items():
        cells += [
            group.cell("bits_per_token") if group else MISSING,
            _published(CORPORA[title], paper),
        ]
    steps = dict.fromkeys(group.progress() for group in groups.values() if group)
    return [*cells, "; ".join(steps) or MISSING]


def _published(name: str, paper: dict[str, float | None]) -> str:
    return published_cell(name, paper[name]) or SEE_PAPER


def _window(group: SeedGroup) -> str:
    window = window_of(group.config)
    return "" if window is None else f"{window:,}"


OTHER_COLUMNS = {
    "row": lambda group: group.name,
    "parameters": lambda group: f"{group.parameters:,}",
    "segment": lambda group: f"{group.config.data.segment_length:,}",
    "window": _window,
    "bits/token": lambda group: group.cell("bits_per_token"),
    "bits/byte": lambda group: group.cell("bits_per_byte"),
    "steps": SeedGroup.progress,
    "tokens seen": lambda group: count_cell(group.tokens_seen()),
    "tokens/s": lambda group: count_cell(group.tokens_per_second()),
}


def other_table(groups: Sequence[SeedGroup]) -> TextTable:
    """A table of groups by their own names; parameters are those without the embedding."""
    rows = [[show(group) for show in OTHER_COLUMNS.values()] for group in groups]
    return TextTable(list(OTHER_COLUMNS), rows, LEFT)


def _row_data(placement: Placement, row: TableRow) -> dict[str, Any]:
    groups = {name: placement.cells.get((row.paper, title)) for title, name in CORPORA.items()}
    return {
        "row": row.paper,
        "segment": row.config.data.segment_length,
        "window": row.config.model.window,
        "step_time": placement.step_time(row.paper),
        "paper": row_figures(row.paper)._asdict(),
        "cells": {name: group.data() if group else None for name, group in groups.items()},
    }


def draw(placement: Placement, picture: "Figure") -> None:
    """Draws the paper's columns, and below them a panel for each other table."""
    above, *below = [len(paper_rows()), *(len(found) for found in placement.others.values())]
    heights = [above + 4, *(size + 4 for size in below)]
    picture.set_size_inches(13, 0.27 * sum(heights) + 0.4)
    parts = picture.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = parts[0].subplots(1, len(CORPORA), sharey=True)
    for panel, title in zip(panels, CORPORA, strict=True):
        _draw_column(panel, placement, title)
    parts[0].legend(handles=_legend(), loc="outside upper right", ncols=3, frameon=False)
    for part, (title, found) in zip(parts[1:], placement.others.items(), strict=True):
        _draw_others(part.subplots(), title, found)


def _legend() -> list["Line2D"]:
    from matplotlib.lines import Line2D

    kinds = {"here": ("o", "black"), "here, not finished": ("o", "none"), "paper": ("D", "none")}
    return [
        Line2D([], [], linestyle="", marker=marker, color="black", markerfacecolor=face, label=name)
        for name, (marker, face) in kinds.items()
    ]


def _draw_column(panel: "Axes", placement: Placement, title: str) -> None:
    for index, row in enumerate(paper_rows()):
        color = FAMILIES[family(row.paper)]
        published = getattr(row_figures(row.paper), CORPORA[title])
        if published is not None:
            panel.plot(published, index, "D", color=color, markerfacecolor="none")
        if group := placement.cells.get((row.paper, title)):
            _draw_group(panel, group, index)
    _finish(panel, [row.paper for row in paper_rows()], f"{title}, bits per token")


def _draw_others(panel: "Axes", title: str, groups: Sequence[SeedGroup]) -> None:
    for index, group in enumerate(groups):
        _draw_group(panel, group, index)
    names = [
        f"{number} {row_name(group.config)}, {short_count(group.parameters)}"
        for number, group in enumerate(groups, 1)
    ]
    _finish(panel, names, f"{title}: bits per token, rows numbered as in the table")


def _draw_group(panel: "Axes", group: SeedGroup, index: int) -> None:
    """Draws the mean and standard deviation of a group; hollow if it is unfinished."""
    bits = group.summary("bits_per_token")
    if bits.mean is not None:
        color = FAMILIES[group.family]
        face = color if group.finished else "none"
        spread = bits.deviation or 0.0
        panel.errorbar(bits.mean, index, xerr=spread, fmt="o", color=color, markerfacecolor=face)


def _finish(panel: "Axes", names: Sequence[str], label: str) -> None:
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", alpha=0.3)
    panel.margins(x=0.15)
    panel.set_xlabel(label)


def report(found: Sequence[reading.Run], folder: Path) -> None:
    """Prints the tables and writes them, with the picture, into `folder`.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    placement = arrange(group_runs(found))
    present(make_page(placement), partial(draw, placement), folder, "table1")
