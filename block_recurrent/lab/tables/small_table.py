"""The small Table 1: its page and its picture."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from block_recurrent.lab.tables.layout import Page, TextTable, color_of, number_cell
from block_recurrent.lab.tables.paper import TITLES, published_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("row", "parameters", "segment", "window", "step time", "bits/byte")


def make_page(
    results: Sequence[Mapping[str, Any]], untrained: Mapping[str, float], description: str
) -> Page:
    """The rows with their figures, and below them the baselines that need no training.

    Args:
      results: of each row, as `train_table.train_row` writes them.
      untrained: bits per byte of the baselines, by name.
      description: what was trained, on what, and for how long.
    """
    rows = [
        [
            result["row"],
            f"{result['parameters']:,}",
            f"{result['segment']:,}",
            number_cell(result["window"], ",", ""),
            f"{result['step_time']:.2f}",
            f"{result['bits_per_byte']:.3f}",
            result["paper_row"],
            *(published_cell(name, result["paper"][name]) for name in TITLES),
        ]
        for result in results
    ]
    columns = (*COLUMNS, "paper: row", *TITLES.values())
    empty = [""] * (len(columns) - len(COLUMNS))
    rows += [[name, "", "", "", "", f"{bits:.3f}", *empty] for name, bits in untrained.items()]
    table = TextTable(columns, rows, left=("row", "paper: row"))
    data = {"results": results, "untrained": untrained, "description": description}
    pictures = {"table": partial(draw, results, untrained)}
    return Page("table", {"": table}, description, data, pictures)


def draw(
    results: Sequence[Mapping[str, Any]], untrained: Mapping[str, float], picture: "Figure"
) -> None:
    """Draws bits per byte by row, the untrained baselines as lines, and against step time."""
    by_row, by_time = picture.subplots(1, 2)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a baseline may lie behind
    for number, result in enumerate(results, 1):
        name, bits, time = f"{number} {result['row']}", result["bits_per_byte"], result["step_time"]
        color = color_of(result["row"])
        by_row.plot(bits, name, "o", color=color)
        offset = {"textcoords": "offset points"}
        by_row.annotate(f"{bits:.3f}", (bits, name), (6, -3), **offset, bbox=white)
        by_time.plot(time, bits, "o", color=color)
        by_time.annotate(str(number), (time, bits), (5, 4), **offset, fontsize=8)
    for (name, bits), style in zip(untrained.items(), ("--", ":"), strict=False):
        by_row.axvline(bits, color="black", linestyle=style, label=name)
    by_row.invert_yaxis()
    by_row.grid(axis="y", alpha=0.3)
    by_row.margins(x=0.2)
    by_row.set_xlabel("bits per byte (lower is better)")
    by_row.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    by_time.margins(0.1)
    by_time.set_xlabel("step time relative to the sliding-window model with one layer more")
    by_time.set_ylabel("bits per byte")
