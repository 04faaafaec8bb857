"""The layout that all tables share: text for the screen, Markdown, JSON, and a picture."""

import importlib.util
import json
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
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

# Stands in a cell that no run fills.
MISSING = "-"


def family(row: str) -> str:
    """The family of a row, by its name."""
    return re.split("[: ]", row)[0]


def count_cell(number: float | None) -> str:
    """A count with thousands separated."""
    return MISSING if number is None else f"{number:,.0f}"


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
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ()

    def text(self) -> str:
        """The table for the screen."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(self._aligned(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table as Markdown."""
        rule = ["---" if column in self.left else "---:" for column in self.columns]
        lines = ["| " + " | ".join(row) + " |" for row in [self.columns, rule, *self.rows]]
        return "\n".join(lines)

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if column in self.left else cell.rjust(width)
            for column, cell, width in zip(self.columns, row, widths, strict=True)
        ]


class Page(NamedTuple):
    """Tables, the description below them, and the data that they were made of.

    Attributes:
      tables: the tables by title; an empty title has no heading.
      description: what the figures mean.
      data: everything on the page as JSON values.
    """

    tables: Mapping[str, TextTable]
    description: str
    data: Mapping[str, Any]

    def text(self) -> str:
        """The page for the screen."""
        parts = [f"{title}\n\n{table.text()}".lstrip() for title, table in self.tables.items()]
        description = textwrap.fill(
            self.description, 100, break_on_hyphens=False, break_long_words=False
        )
        return "\n\n".join([*parts, description])

    def markdown(self, picture: str | None) -> str:
        """The page as Markdown, with the picture of this name, or none."""
        parts = [
            f"## {title}\n\n{table.markdown()}" if title else table.markdown()
            for title, table in self.tables.items()
        ]
        parts += [self.description, *picture_lines("the same as a picture", picture)]
        return "\n\n".join(parts) + "\n"


def picture_lines(text: str, picture: str | None) -> list[str]:
    """The line of Markdown that shows a picture, if there is one."""
    return [f"![{text}]({picture})"] if picture else []


def present(page: Page, draw: Callable[["Figure"], None], folder: Path, name: str) -> None:
    """Writes the page's files into `folder` by `write_files`, and prints it."""
    show(page.text(), write_files(folder, name, page.markdown, page.data, draw))


def show(text: str, written: Sequence[Path]) -> None:
    """Prints a report and where its files are: written first, for who reads this may be gone."""
    print(text + "\n")
    if not can_draw():
        print("no picture: pip install '.[plots]'")
    for path in written:
        print(f"written to {path}")


def write_files(
    folder: Path,
    name: str,
    markdown: Callable[[str | None], str],
    data: Any,
    draw: Callable[["Figure"], None],
) -> list[Path]:
    """Writes `name`.md, `name`.json and, with matplotlib, `name`.png; returns their paths.

    Args:
      folder: where the files go; it is made if it does not exist.
      name: what the files are called, without their endings.
      markdown: returns the page for a picture of the given name, or for none.
      data: JSON values.
      draw: draws on an empty matplotlib `Figure`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = can_draw()
    paths = [folder / f"{name}.{kind}" for kind in ("md", "json", "png")[: 2 + drawn]]
    paths[0].write_text(markdown(f"{name}.png" if drawn else None), encoding="utf-8")
    paths[1].write_text(json_text(data), encoding="utf-8")
    if drawn:
        save_picture(draw, paths[2])
    return paths


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def json_text(data: Any) -> str:
    """JSON values as the content of a file; null stands for numbers that are not finite."""
    return json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    """`data` with null where a number is not finite, which JSON cannot say."""
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def save_picture(draw: Callable[["Figure"], None], path: Path) -> None:
    """Writes the picture that `draw` draws on an empty matplotlib `Figure`."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 5), layout="constrained")
    draw(picture)
    picture.savefig(path, dpi=120)


def label_logarithmic(axis: "Axis") -> None:
    """Puts ticks at 1, 2 and 5 of every decade of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: short_count(value))
