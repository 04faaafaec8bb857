"""The small Table 1 as text, Markdown, JSON and a picture."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.reports.layout import FAMILIES, Table, family, picture_lines, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_COLUMNS = {
    "step_time": "step time",
    "pg19_bytes": "PG19 bytes",
    "pg19_tokens": "PG19 tokens",
    "arxiv": "arXiv",
    "github": "GitHub",
}
COLUMNS = (
    "row",
    "parameters",
    "segment",
    "window",
    "step time",
    "bits/byte",
    "paper: row",
    *PAPER_COLUMNS.values(),
)


class Report(NamedTuple):
    """The table's contents.

    Attributes:
      results: a dictionary a row.
      yardsticks: bits per byte of other means, by name.
      description: what was trained, on what, and for how long.
    """

    results: Sequence[Mapping[str, Any]]
    yardsticks: Mapping[str, float]
    description: str

    def cells(self) -> list[list[str]]:
        """All rows as text, without the header."""
        rows = [_row_cells(result) for result in self.results]
        empty = [""] * (len(COLUMNS) - 6)
        for name, value in self.yardsticks.items():
            rows.append([name, "", "", "", "", f"{value:.3f}", *empty])
        return rows

    def table(self) -> Table:
        """The cells under their header."""
        return Table(COLUMNS, self.cells(), left=("row", "paper: row"))

    def text(self) -> str:
        """For the screen."""
        lines = self.table().text().splitlines()
        lines.insert(-len(self.yardsticks) or len(lines), "")
        return "\n".join(lines) + "\n\n" + textwrap.fill(self.description, 100)

    def markdown(self, picture: str | None) -> str:
        """For a page that shows a picture, or has none."""
        parts = [self.table().markdown(), self.description]
        return "\n\n".join([*parts, *picture_lines("bits per byte", picture)]) + "\n"


def _row_cells(result: Mapping[str, Any]) -> list[str]:
    paper = result["paper"]
    return [
        result["row"],
        f"{result['parameters']:,}",
        f"{result['segment']:,}",
        f"{result['window']:,}",
        f"{result['step_time']:.2f}",
        f"{result['bits_per_byte']:.3f}",
        result["paper_row"],
        *(paper_cell(name, paper[name]) for name in PAPER_COLUMNS),
    ]


def paper_cell(name: str, value: float | None) -> str:
    """A published figure, with as many digits as the paper gives; blank if there is none."""
    if value is None:
        return ""
    return f"{value:.2f}" if name == "step_time" else f"{value:#.3g}"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes `table.md`, `table.json` and `table.png` as of `write_files`; returns their paths."""
    draw = partial(plot, report)
    return write_files(folder, "table", report.markdown, report._asdict(), draw)


def plot(report: Report, figure: "Figure") -> None:
    """Bits per byte by row with the yardsticks as lines, and against relative step time."""
    by_row, by_time = figure.subplots(1, 2)
    for number, result in enumerate(report.results, 1):
        name, bits = f"{number} {result['row']}", result["bits_per_byte"]
        color = FAMILIES[family(result["row"])]
        by_row.plot(bits, name, "o", color=color)
        by_row.annotate(f"{bits:.3f}", (bits, name), (6, -3), textcoords="offset points")
        by_time.plot(result["step_time"], bits, "o", color=color)
        place = (result["step_time"], bits)
        by_time.annotate(str(number), place, (5, 4), textcoords="offset points", fontsize=8)
    for (name, bits), style in zip(report.yardsticks.items(), ("--", ":"), strict=False):
        by_row.axvline(bits, color="black", linestyle=style, label=name)
    by_row.invert_yaxis()
    by_row.grid(axis="y", alpha=0.3)
    by_row.margins(x=0.2)
    by_row.set_xlabel("bits per byte (lower is better)")
    by_row.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    by_time.margins(0.1)
    by_time.set_xlabel("step time relative to the sliding-window model with one layer more")
    by_time.set_ylabel("bits per byte")
