"""The small Table 1: what it holds, and its layout as text, Markdown, JSON and a picture."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.lab.tables.layout import (
    FAMILIES,
    TextTable,
    family,
    picture_lines,
    write_files,
)
from block_recurrent.lab.tables.paper import TITLES, published_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("row", "parameters", "segment", "window", "step time", "bits/byte")
PAPER_COLUMNS = ("paper: row", *TITLES.values())


class SmallTable(NamedTuple):
    """The rows of Table 1 at a small size, with their figures.

    Attributes:
      results: for each row a dictionary with `row`, `paper_row`, `parameters`, `segment`, `window`,
        `step_time`, `bits_per_byte`, and in `paper` the paper's figures by name.
      untrained: bits per byte of the baselines that need no training, by name.
      description: what was trained, on what, and for how long.
    """

    results: Sequence[Mapping[str, Any]]
    untrained: Mapping[str, float]
    description: str

    def table(self) -> TextTable:
        """The rows, and below them the baselines that need no training."""
        rows = [_row_cells(result) for result in self.results]
        empty = [""] * len(PAPER_COLUMNS)
        for name, bits in self.untrained.items():
            rows.append([name, "", "", "", "", f"{bits:.3f}", *empty])
        return TextTable((*COLUMNS, *PAPER_COLUMNS), rows, left=("row", "paper: row"))

    def text(self) -> str:
        """The table for the screen."""
        lines = self.table().text().splitlines()
        lines.insert(-len(self.untrained) or len(lines), "")
        return "\n".join(lines) + "\n\n" + textwrap.fill(self.description, 100)

    def markdown(self, picture: str | None) -> str:
        """The table for a page that shows the picture of this name, or none."""
        parts = [self.table().markdown(), self.description]
        return "\n\n".join([*parts, *picture_lines("bits per byte", picture)]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Writes `table.md`, `table.json` and `table.png` by `write_files`; returns their paths."""
        return write_files(folder, "table", self.markdown, self._asdict(), partial(draw, self))


def _row_cells(result: Mapping[str, Any]) -> list[str]:
    paper = result["paper"]
    return [
        result["row"],
        f"{result['parameters']:,}",
        f"{result['segment']:,}",
        "" if result["window"] is None else f"{result['window']:,}",
        f"{result['step_time']:.2f}",
        f"{result['bits_per_byte']:.3f}",
        result["paper_row"],
        *(published_cell(name, paper[name]) for name in TITLES),
    ]


def draw(table: SmallTable, picture: "Figure") -> None:
    """Draws bits per byte by row, the untrained baselines as lines, and against step time."""
    by_row, by_time = picture.subplots(1, 2)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a baseline may lie behind
    for number, result in enumerate(table.results, 1):
        name, bits = f"{number} {result['row']}", result["bits_per_byte"]
        color = FAMILIES[family(result["row"])]
        by_row.plot(bits, name, "o", color=color)
        figure = f"{bits:.3f}"
        by_row.annotate(figure, (bits, name), (6, -3), textcoords="offset points", bbox=white)
        by_time.plot(result["step_time"], bits, "o", color=color)
        place = (result["step_time"], bits)
        by_time.annotate(str(number), place, (5, 4), textcoords="offset points", fontsize=8)
    for (name, bits), style in zip(table.untrained.items(), ("--", ":"), strict=False):
        by_row.axvline(bits, color="black", linestyle=style, label=name)
    by_row.invert_yaxis()
    by_row.grid(axis="y", alpha=0.3)
    by_row.margins(x=0.2)
    by_row.set_xlabel("bits per byte (lower is better)")
    by_row.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    by_time.margins(0.1)
    by_time.set_xlabel("step time relative to the sliding-window model with one layer more")
    by_time.set_ylabel("bits per byte")
