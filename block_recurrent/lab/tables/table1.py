"""The paper's Table 1 from work directories, beside the paper's figures.

    block-recurrent table1 runs/rec runs/slide_13l

A row without a run stays empty. The figures of an unfinished run are marked with its step. Runs of
other sizes or on other corpora are in tables of their own.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.tables.layout import (
    MISSING,
    Page,
    TextTable,
    color_of,
    explain_markers,
    label_rows,
    number_cell,
    publish,
    short_count,
)
from block_recurrent.lab.tables.naming import COLUMNS, column, row_name
from block_recurrent.lab.tables.options import parse_runs
from block_recurrent.lab.tables.paper import LENGTH, TITLES, published_cell, row_figures
from block_recurrent.lab.tables.rows import TableRow, paper_row, paper_rows
from block_recurrent.lab.tables.seed_groups import (
    CELLS,
    LOST_NOTE,
    SeedGroup,
    group_runs,
    group_table,
    marker,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORPORA = {title: name for name, title in TITLES.items() if title in COLUMNS.values()}
REFERENCE = "Slide:13L"
SEE_PAPER = "see paper"
DESCRIPTION = (
    "Bits per token on the validation documents at the end of training, beside the paper's figures "
    f"(Hutchins et al. 2022, {LENGTH}). Of several seeds: mean ± sample "
    "standard deviation (number of seeds). @STEP: not finished, the figure is from that step. "
    f"{MISSING}: no run. {SEE_PAPER}: the paper has a figure that could not be verified. Figures "
    "of tokens are comparable only with the same vocabulary. Step time is the time of a token "
    f"relative to {REFERENCE}'s on the same corpus, from the medians of tokens per second, which "
    f"is fair if both ran on the same machine. {LOST_NOTE}"
)
OTHER_COLUMNS = tuple(column for column in CELLS if column != "recurrent")


class Arranged(NamedTuple):
    """Which cell of the tables each group fills.

    Attributes:
      cells: the groups that fill the paper's table, by the row's and the column's name.
      others: all other groups, by column.
    """

    cells: dict[tuple[str, str], SeedGroup]
    others: dict[str, list[SeedGroup]]

    def of_row(self, row: str) -> list[SeedGroup | None]:
        """The groups of a row, one for each of `CORPORA`."""
        return [self.cells.get((row, title)) for title in CORPORA]

    def step_time(self, row: str) -> float | None:
        """A row's step time relative to the reference's, the median over columns that have both."""
        pairs = zip(self.of_row(row), self.of_row(REFERENCE), strict=True)
        speeds = [(a.tokens_per_second(), b.tokens_per_second()) for a, b in pairs if a and b]
        ratios = [theirs / own for own, theirs in speeds if own and theirs]
        return median(ratios) if ratios else None


def arrange(groups: Sequence[SeedGroup]) -> Arranged:
    """Finds the cell of every group.

    If several configurations fit one cell, the one that was trained on most tokens fills it.
    """
    arranged = Arranged({}, {})
    for group in sorted(groups, key=lambda group: -(group.tokens_seen() or 0)):
        row, title = paper_row(group.config), column(group.config)
        if row and title in CORPORA and (row.paper, title) not in arranged.cells:
            arranged.cells[row.paper, title] = group
        else:
            arranged.others.setdefault(title, []).append(group)
    for found in arranged.others.values():
        found.sort(key=groups.index)
    return arranged


def make_page(arranged: Arranged) -> Page:
    """The paper's table, and below it a table for each column of other runs."""
    titles = [name for title in CORPORA for name in (title, "paper")]
    columns = ["row", "segment", "window", "step time", "paper", *titles, "steps"]
    lines = [_line(arranged, row) for row in paper_rows()]
    tables = {"": TextTable(columns, [cells for _, cells in lines], ("row",))}
    tables |= {
        f"Other runs: {title}": group_table(found, OTHER_COLUMNS)
        for title, found in arranged.others.items()
    }
    others = {title: [g.data() for g in found] for title, found in arranged.others.items()}
    data = {"rows": [row for row, _ in lines], "others": others}
    return Page("table1", tables, DESCRIPTION, data, {"table1": partial(draw, arranged)})


def _line(arranged: Arranged, row: TableRow) -> tuple[dict[str, Any], list[str]]:
    """A row of the paper's table, as JSON values and as cells."""
    segment, window = row.config.data.segment_length, row.config.model.window
    time, paper = arranged.step_time(row.paper), row_figures(row.paper)
    groups = dict(zip(CORPORA.values(), arranged.of_row(row.paper), strict=True))
    shown = {name: published_cell(name, x) or SEE_PAPER for name, x in paper.items()}
    cells = [row.paper, f"{segment:,}", f"{window:,}", number_cell(time, ".2f"), shown["step_time"]]
    for name, group in groups.items():
        cells += [group.cell("bits_per_token") if group else MISSING, shown[name]]
    steps = dict.fromkeys(group.progress() for group in groups.values() if group)
    data = {
        "row": row.paper,
        "segment": segment,
        "window": window,
        "step_time": time,
        "paper": paper,
        "cells": {name: group and group.data() for name, group in groups.items()},
    }
    return data, [*cells, "; ".join(steps) or MISSING]


def draw(arranged: Arranged, picture: "Figure") -> None:
    """Draws the paper's columns, and below them a panel for each other table."""
    rows = [row.paper for row in paper_rows()]
    heights = [len(names) + 4 for names in (rows, *arranged.others.values())]
    picture.set_size_inches(13, 0.27 * sum(heights) + 0.4)
    parts = picture.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = parts[0].subplots(1, len(CORPORA), sharey=True)
    for panel, (title, name) in zip(panels, CORPORA.items(), strict=True):
        for index, row in enumerate(rows):
            published = row_figures(row)[name]
            if published is not None:
                style = {"color": color_of(row), "markerfacecolor": "none"}
                panel.plot(published, index, "D", **style)
        _draw_groups(panel, [arranged.cells.get((row, title)) for row in rows])
        label_rows(panel, rows, f"{title}, bits per token")
    shapes = {"here": ("o", "black"), "here, not finished": ("o", "none"), "paper": ("D", "none")}
    explain_markers(panels[-1], shapes)
    parts[0].legend(loc="outside upper right", ncols=3, frameon=False)
    for part, (title, groups) in zip(parts[1:], arranged.others.items(), strict=True):
        panel = part.subplots()
        _draw_groups(panel, groups)
        names = [
            f"{number} {row_name(group.config)}, {short_count(group.parameters)}"
            for number, group in enumerate(groups, 1)
        ]
        label_rows(panel, names, f"{title}: bits per token, rows numbered as in the table")


def _draw_groups(panel: "Axes", groups: Sequence[SeedGroup | None]) -> None:
    """Draws the mean and standard deviation of each group, from the top."""
    for index, group in enumerate(groups):
        bits = group.spread("bits_per_token") if group else None
        if group and bits and bits.mean is not None:
            panel.errorbar(bits.mean, index, xerr=bits.deviation or 0.0, **marker(group))
    panel.margins(x=0.15)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments, runs = parse_runs(Parser(description=__doc__), argv, "runs/table1")
    publish(make_page(arrange(group_runs(runs))), arguments.output)
    return 0
