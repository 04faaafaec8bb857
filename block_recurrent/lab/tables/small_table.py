"""The small Table 1: its page and its picture."""

import lzma
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from block_recurrent.data import Document
from block_recurrent.lab.tables.layout import Page, TextTable, color_of, finish
from block_recurrent.lab.tables.naming import family
from block_recurrent.lab.tables.paper import TITLES, published_cell, row_figures
from block_recurrent.lab.tables.rows import TableRow
from block_recurrent.lab.tables.seed_groups import SeedGroup, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_SEED = (
    "One seed says nothing of differences below about 0.03 bits per byte; --seeds=3 trains every "
    "row three times."
)
SIZES, BITS = ("row", "parameters", "window"), ("bits/token", "bits/byte")


def lzma_bits_per_byte(documents: Sequence[Document]) -> float:
    """Bits per byte of LZMA at its highest preset, each document compressed on its own."""
    texts = [document.text.encode() for document in documents]
    preset = 9 | lzma.PRESET_EXTREME
    compressed = sum(len(lzma.compress(text, preset=preset)) for text in texts)
    return 8 * compressed / sum(map(len, texts))


def make_page(
    groups: Sequence[SeedGroup],
    step_times: Mapping[TableRow, float],
    compressed: float,
    description: str,
) -> Page:
    """The rows with their figures, and below them what a compressor needs.

    Args:
      groups: the runs of each row.
      step_times: of each row and seed, relative to the reference.
      compressed: bits per byte of LZMA.
      description: what was trained, on what, and for how long.
    """
    papers = {row.name: row.paper for row in step_times}
    times = {
        name: statistics.mean(time for row, time in step_times.items() if row.name == name)
        for name in papers
    }
    columns = (*SIZES, "step time", *BITS, "paper: row", *TITLES.values())
    lines, data = [], []
    for group in groups:
        paper, time = papers[group.name], times[group.name]
        figures = row_figures(paper)
        published = [published_cell(name, figure) for name, figure in figures.items()]
        lines.append([*cells(group, SIZES), f"{time:.2f}", *cells(group, BITS), paper, *published])
        data.append({**group.data(), "step_time": time, "paper_row": paper, "paper": figures})
    below = {"row": "lzma", "bits/byte": f"{compressed:.3f}"}
    table = TextTable(
        columns, [*lines, [below.get(column, "") for column in columns]], ("row", "paper: row")
    )
    if any(len(group.runs) > 1 for group in groups):
        description += " Figures of several seeds: mean ± standard deviation (number of seeds)."
    else:
        description += f" {ONE_SEED}"
    pictures = {"table": partial(draw, groups, times, compressed)}
    return Page("table", {"": table}, description, {"rows": data, "lzma": compressed}, pictures)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (step time, bits) that no other surpasses in both, fastest first."""
    ahead: list[tuple[float, float]] = []
    for point in sorted(points):
        if not ahead or point[1] < ahead[-1][1]:
            ahead.append(point)
    return ahead


def draw(
    groups: Sequence[SeedGroup],
    times: Mapping[str, float],
    compressed: float,
    picture: "Figure",
) -> None:
    """Draws bits per byte against step time: a labelled point for each row, and the frontier."""
    panel = picture.subplots()
    bits = {group.name: group.spread("bits_per_byte") for group in groups}
    points = {name: (times[name], found.mean) for name, found in bits.items() if found.mean}
    best, labelled = frontier(list(points.values())), set[str]()
    for name, (time, mean) in points.items():
        color, kind = color_of(name), family(name)
        label = kind if kind not in labelled else None
        labelled.add(kind)
        style = {"fmt": "o", "color": color, "capsize": 3}
        panel.errorbar(time, mean, bits[name].deviation, label=label, **style)
        side, shift = ("left", 7) if time <= 1 else ("right", -7)
        # A label stands below its point if another one, or the frontier, is close above.
        crowded = any(abs(x - time) < 0.15 and 0 < y - mean < 0.01 for x, y in points.values())
        crowded |= side == "right" and (time, mean) in best
        offset = {"xytext": (shift, -14 if crowded else 5), "textcoords": "offset points"}
        panel.annotate(name, (time, mean), **offset, ha=side, color=color)
    if len(best) > 1:
        label = "no row is both faster and better"
        panel.plot(*zip(*best, strict=True), color="lightgray", zorder=0, label=label)
    panel.margins(0.15)
    panel.set_xlabel("step time, relative to the sliding-window model with one layer more")
    panel.set_ylabel("bits per byte (lower is better)")
    panel.set_title(f"What a step's time buys (lzma: {compressed:.3f} bits per byte)")
    finish([panel])
