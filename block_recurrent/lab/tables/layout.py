"""What all tables and their pictures share: text, Markdown, JSON, and the files they go to."""

import json
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from block_recurrent.lab.tables.naming import family
from block_recurrent.system.extras import MissingPackage, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours of the rows' families, the same in every picture.
FAMILIES = {
    "XL": "tab:gray",
    "Slide": "tab:blue",
    "Rec": "tab:red",
    "Feedback": "tab:purple",
    "Transformer-XL": "tab:brown",
    "Transformer": "tab:olive",
    "LSTM": "tab:green",
}
LINES, MARKERS = ("-", "--", ":", "-."), "os^D"  # tell rows of a family apart
MISSING = "-"  # in a cell that no run fills

Draw = Callable[["Figure"], None]


def color_of(row: str) -> str:
    """The colour of a row, from its name."""
    return FAMILIES.get(family(row), "tab:green")


def styles(rows: Sequence[str]) -> list[dict[str, Any]]:
    """The colour, line and marker of each row, which follow from its number in its family."""
    families = list(map(family, rows))
    numbers = [families[:index].count(name) % len(LINES) for index, name in enumerate(families)]
    return [
        {"color": color_of(row), "linestyle": LINES[number], "marker": MARKERS[number]}
        for row, number in zip(rows, numbers, strict=True)
    ]


def number_cell(number: float | None, form: str = ".4f", missing: str = MISSING) -> str:
    """A number as text, or `missing` if there is none or it is not finite."""
    return f"{number:{form}}" if number is not None and math.isfinite(number) else missing


def interval_cell(low: float, high: float) -> str:
    """An interval as text, `MISSING` if it is not finite."""
    return f"[{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else MISSING


def short_count(number: float) -> str:
    """Three digits of a large count, such as "160 M"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


class TextTable(NamedTuple):
    """A table whose cells are text.

    Attributes:
      columns: the header.
      rows: the cells, as many in each as there are columns.
      left: the columns that are aligned to the left; the others hold figures.
    """

    columns: Sequence[str]
    rows: list[list[str]]
    left: Collection[str] = ()

    def text(self) -> str:
        """The table for the screen."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        sides = ["<" if column in self.left else ">" for column in self.columns]
        form = "  ".join(f"{{:{side}{n}}}" for side, n in zip(sides, widths, strict=True))
        rows = [self.columns, ["-" * width for width in widths], *self.rows]
        return "\n".join(form.format(*row).rstrip() for row in rows)

    def markdown(self) -> str:
        """The table as Markdown."""
        rule = ["---" if column in self.left else "---:" for column in self.columns]
        lines = ["| " + " | ".join(row) + " |" for row in [self.columns, rule, *self.rows]]
        return "\n".join(lines)


class Page(NamedTuple):
    """Tables, what their figures mean, the data that they were made of, and pictures.

    Attributes:
      name: what the files are called, without their endings.
      tables: the tables by title; an empty title has no heading.
      description: what the figures mean.
      data: all other things on the page as JSON values; arrays and NamedTuples are allowed.
      pictures: by name, functions that draw on an empty matplotlib `Figure`.
      details: tables that only the Markdown file has, by title.
    """

    name: str
    tables: Mapping[str, TextTable]
    description: str
    data: Mapping[str, Any]
    pictures: Mapping[str, Draw]
    details: Mapping[str, TextTable] = {}

    def text(self) -> str:
        """The page for the screen."""
        parts = [f"{title}\n\n{table.text()}".lstrip() for title, table in self.tables.items()]
        description = textwrap.fill(
            self.description, 100, break_on_hyphens=False, break_long_words=False
        )
        return "\n\n".join([*parts, description])

    def markdown(self) -> str:
        """The page as Markdown."""
        parts = [
            f"## {title}\n\n{table.markdown()}" if title else table.markdown()
            for title, table in (*self.tables.items(), *self.details.items())
        ]
        shown = [f"![{name}]({name}.png)" for name in self.pictures]
        return "\n\n".join([*parts, self.description, *shown]) + "\n"


def publish(page: Page, folder: Path) -> None:
    """Writes a page's Markdown, JSON and, with matplotlib, its pictures; then prints it.

    The files come first, because whoever reads the output may be gone.

    Args:
      page: the page.
      folder: where the files go; it is made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = None
    try:
        require("matplotlib", "plots")
    except MissingPackage as error:
        page, missing = page._replace(pictures={}), error
    data = _json_values({**page.data, "description": page.description})
    written = [folder / f"{page.name}.md", folder / f"{page.name}.json"]
    written[0].write_text(page.markdown(), encoding="utf-8")
    written[1].write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for name, draw in page.pictures.items():
        from matplotlib.figure import Figure

        picture = Figure(figsize=(12, 5), layout="constrained")
        draw(picture)
        written.append(folder / f"{name}.png")
        picture.savefig(written[-1], dpi=120)
    print(page.text() + "\n")
    if missing:
        print(f"no picture: {missing}")
    for path in written:
        print(f"written to {path}")


def _json_values(data: Any) -> Any:
    """What JSON has, for arrays and NamedTuples too; None for numbers that are not finite."""
    if isinstance(data, (np.ndarray, np.generic)):
        data = data.tolist()
    elif hasattr(data, "_asdict"):
        data = data._asdict()
    if isinstance(data, Mapping):
        return {name: _json_values(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_json_values(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def label_logarithmic(axis: "Axis") -> None:
    """Puts ticks at 1, 2 and 5 of every decade of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: short_count(value))


def explain_markers(panel: "Axes", markers: Mapping[str, tuple[str, str]]) -> None:
    """Adds markers to the legend: the shape and the face's colour by meaning."""
    for meaning, (shape, face) in markers.items():
        panel.plot([], [], shape, color="black", markerfacecolor=face, label=meaning)


def finish(panels: Iterable["Axes"], **legend: Any) -> None:
    """Adds a grid behind what is drawn, and a legend where something has a label."""
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, **legend)


def label_rows(panel: "Axes", names: Sequence[str], label: str) -> None:
    """Names the rows of a panel, the first one on top, and its horizontal axis."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", alpha=0.3)
    panel.set_xlabel(label)
