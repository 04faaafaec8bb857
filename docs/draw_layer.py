"""Draws the picture of the layer: the cell's two directions, and the stack over blocks.

python docs/draw_layer.py        writes docs/images/layer.svg
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUTPUT = Path(__file__).parent / "images" / "layer.svg"


class Colour(NamedTuple):
    """Line and fill."""

    line: str
    fill: str


TOKENS = Colour("#2b62a3", "#dfeaf7")
STATES = Colour("#b8560f", "#fce8d6")
PLAIN = Colour("#55606e", "#eef1f4")
INK = "#1c2530"
SIZE = 10  # of the text, in points

Point = tuple[float, float]


def box(
    axes: Axes, centre: Point, size: Point, text: str, colour: Colour, *, dashed: bool = False
) -> None:
    """A rounded box around a text."""
    (x, y), (width, height) = centre, size
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.8",
        edgecolor=colour.line,
        facecolor=colour.fill,
        linewidth=1.1,
        linestyle="--" if dashed else "-",
        zorder=3,
    )
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", color=INK, size=SIZE, zorder=4)


def arrow(
    axes: Axes, start: Point, end: Point, colour: Colour, *, width: float = 1.4, bend: float = 0
) -> None:
    """An arrow, straight unless bent."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>,head_length=0.45,head_width=0.22",
        mutation_scale=10,
        color=colour.line,
        linewidth=width,
        shrinkA=0,
        shrinkB=0,
        connectionstyle=f"arc3,rad={bend}",
        zorder=2,
    )
    axes.add_patch(patch)


def route(axes: Axes, points: Sequence[Point], colour: Colour, *, width: float = 1.2) -> None:
    """An arrow along straight pieces."""
    *through, last = points
    axes.plot(*zip(*through, strict=True), color=colour.line, linewidth=width, zorder=2)
    arrow(axes, through[-1], last, colour, width=width)


def note(axes: Axes, x: float, y: float, text: str, colour: str = INK, **style) -> None:
    """A text without a box."""
    given = {"ha": "center", "va": "center", "size": SIZE} | style
    axes.text(x, y, text, color=colour, zorder=5, **given)


LEFT, RIGHT, WIDE, HIGH = 18.0, 58.5, 29.0, 5.0  # the cell's two columns and their boxes
INNER = 7.5  # distance of the two attention boxes from their column's middle
ROWS = {"in": 3.5, "project": 13, "attend": 25, "join": 35, "last": 43.5, "out": 53}
TOKEN_TEXTS = {
    "in": "tokens of block k   [W, E]",
    "project": "norm; queries,\nkeys, values",
    "join": "concatenate, project, + x",
    "last": "norm, MLP, +",
    "out": "tokens to the next layer",
}
STATE_TEXTS = {
    "in": "states $s_k$   [S, E]",
    "project": "norm, + state ids;\nqueries, keys, values",
    "join": "concatenate, project: z",
    "last": "gate:  $s_{k+1} = g\\,s_k + (1 - g)\\,z$",
    "out": "states $s_{k+1}$ for block k + 1",
}


def draw_column(axes: Axes, x: float, colour: Colour, texts: dict[str, str]) -> None:
    """The boxes of a column of the cell, except attention, and the arrows between them."""
    for row, text in texts.items():
        tall = HIGH + 1.6 if "\n" in text else HIGH
        edge = PLAIN if row in ("project", "join", "last") else colour
        box(axes, (x, ROWS[row]), (WIDE, tall), text, edge)
    for low, top in (("in", "project"), ("join", "last"), ("last", "out")):
        gap = 3.3 if top == "project" else HIGH / 2
        arrow(axes, (x, ROWS[low] + HIGH / 2), (x, ROWS[top] - gap), colour)
    for side in (-INNER, INNER):
        arrow(axes, (x + side, ROWS["project"] + 3.3), (x + side, ROWS["attend"] - 3.6), colour)
        arrow(axes, (x + side, ROWS["attend"] + 3.6), (x + side, ROWS["join"] - 2.5), colour)


def draw_attention(axes: Axes) -> None:
    """The four kinds of attention of a cell, and the keys and values that go between columns."""
    attention, y = (14.0, 7.4), ROWS["attend"]
    box(axes, (LEFT - INNER, y), attention, "self-attention:\neach sees the\nW before it", TOKENS)
    box(axes, (LEFT + INNER, y), attention, "attention\nto the states", STATES)
    box(axes, (RIGHT - INNER, y), attention, "attention to\ntokens of\nk − 1 and k", TOKENS)
    box(axes, (RIGHT + INNER, y), attention, "self-attention\nof the states", STATES)
    middle, low, top = (LEFT + RIGHT) / 2, ROWS["project"] + 2, y - 1
    arrow(axes, (LEFT + WIDE / 2, low), (RIGHT - INNER - 7, top), TOKENS, width=1.8)
    arrow(axes, (RIGHT - WIDE / 2, low), (LEFT + INNER + 7, top), STATES, width=1.8)
    note(axes, middle, y + 0.6, "keys,\nvalues", size=SIZE - 0.5)
    cache = "cache:\nkeys and\nvalues of\nk − 1"
    box(axes, (middle, ROWS["in"] + 0.4), (9.6, 9.6), cache, TOKENS, dashed=True)
    corner = ROWS["project"] - 1.2
    route(axes, [(middle, ROWS["in"] + 5), (middle, corner), (LEFT + WIDE / 2, corner)], TOKENS)


def draw_residual(axes: Axes, edge: float, distance: float, end: str, colour: Colour) -> None:
    """The arrow around the boxes at an edge of a column, from the input to the row `end`."""
    low, top, side = ROWS["in"], ROWS[end], edge + distance
    route(axes, [(edge, low), (side, low), (side, top), (edge, top)], colour)


def draw_cell(axes: Axes) -> None:
    """One block through the cell: tokens upward, states to the next block."""
    note(axes, LEFT, 60.5, "vertical: tokens", TOKENS.line, weight="bold", size=SIZE + 1)
    note(axes, RIGHT, 60.5, "horizontal: states", STATES.line, weight="bold", size=SIZE + 1)
    draw_column(axes, LEFT, TOKENS, TOKEN_TEXTS)
    draw_column(axes, RIGHT, STATES, STATE_TEXTS)
    draw_attention(axes)
    draw_residual(axes, LEFT - WIDE / 2, -2.2, "join", TOKENS)
    draw_residual(axes, RIGHT + WIDE / 2, 2.2, "last", STATES)


def draw_caption(axes: Axes) -> None:
    """A note on what the cell's picture leaves out."""
    lines = (
        "Tokens read the states as they are before the block.",
        "Drawn: fixed gate, skip wiring. The gate g is learned, one for each unit;",
        "an LSTM gate computes it, two other wirings add an MLP.",
    )
    for y, line in zip((-4.5, -8, -11.5), lines, strict=True):
        note(axes, 3.5, y, line, ha="left")


def draw_stack(axes: Axes) -> None:
    """A segment of four blocks through four layers."""
    columns, recurrent = (17.0, 28.5, 40.0, 51.5), 2
    layers = (15.0, 24.5, 34.0, 43.5)
    start, end, width, height = 5.5, 61.0, 7.6, 5.2
    note(axes, 33.7, 60.5, "the stack over a segment of four blocks", weight="bold", size=SIZE + 1)
    for number, x in enumerate(columns, 1):
        box(axes, (x, 4.5), (width, 4.4), f"block {number}", PLAIN)
        box(axes, (x, 53), (width, 4.4), "logits", PLAIN)
        heights = (6.7, *(y + height / 2 for y in layers))
        tops = (*(y - height / 2 for y in layers), 50.8)
        for low, top in zip(heights, tops, strict=True):
            arrow(axes, (x, low), (x, top), TOKENS)
    edges = [start, *columns, end]
    for index, y in enumerate(layers):
        is_recurrent = index == recurrent
        colour = STATES if is_recurrent else TOKENS
        for x in columns:
            box(axes, (x, y), (width, height), "cell" if is_recurrent else "layer", colour)
        for position, (a, b) in enumerate(itertools.pairwise(edges)):
            begin = a if position == 0 else a + width / 2
            stop = b if position == len(edges) - 2 else b - width / 2
            lift = 1.3 if is_recurrent else 0
            arrow(axes, (begin, y - lift), (stop, y - lift), TOKENS, width=0.9)
            if is_recurrent:
                arrow(axes, (begin, y + lift), (stop, y + lift), STATES, width=2.2)
    for x in (9.2, 58.2):
        axes.plot(
            [x, x], [9.5, 48.5], color=PLAIN.line, linewidth=1, linestyle=(0, (2, 3)), zorder=1
        )


def draw_legend(axes: Axes) -> None:
    """The meaning of the arrows of the stack."""
    entries = (
        (TOKENS, 0.9, "keys and values of the last window (cache)"),
        (STATES, 2.2, "recurrent states"),
    )
    for y, (colour, width, text) in zip((-4.5, -8), entries, strict=True):
        arrow(axes, (6, y), (12, y), colour, width=width)
        note(axes, 14, y, text, ha="left")
    note(axes, 6, -11.5, "dotted: ends of the segment; carried over, without gradient", ha="left")


def draw(path: Path) -> None:
    """Writes the picture."""
    settings = {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
    settings |= {"svg.hashsalt": "layer"}
    with plt.rc_context(settings):
        figure, (cell, stack) = plt.subplots(
            1, 2, figsize=(11, 5.8), width_ratios=(76, 67), facecolor="white"
        )
        for axes in (cell, stack):
            axes.set(xlim=(0, 76 if axes is cell else 67), ylim=(-13.5, 63))
            axes.axis("off")
        figure.subplots_adjust(0.005, 0.005, 0.995, 0.995, wspace=0.01)
        draw_cell(cell)
        draw_caption(cell)
        draw_stack(stack)
        draw_legend(stack)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
