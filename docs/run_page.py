"""Runs the Python blocks of a page and puts what they print into the page.

    python docs/run_page.py docs/tutorial.md

The blocks run one after the other in an empty folder. A block that prints is followed by a `text`
block, which is replaced; pictures that the code saves go to `docs/images/`.
"""

import contextlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def code_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    return [match[1] for match in BLOCK.finditer(page)]


def outputs_of(page: str) -> list[str | None]:
    """The output shown after each Python block, None where none is shown."""
    return [match[2] for match in BLOCK.finditer(page)]


def run(blocks: list[str], names: dict[str, Any]) -> Iterator[str]:
    """Runs blocks one after the other with the shared `names`; yields what each prints."""
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        yield printed.getvalue()


def with_outputs(page: str, printed: list[str]) -> str:
    """The page with these outputs, one for each Python block."""
    remaining = iter(printed)

    def replace(match: re.Match[str]) -> str:
        text = next(remaining)
        shown = f"\n```text\n{text.rstrip()}\n```\n" if text else ""
        return f"```python\n{match[1]}```\n{shown}"

    return BLOCK.sub(replace, page)


def main(path: Path) -> None:
    """Runs a page and updates its outputs and pictures."""
    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        printed = list(run(code_of(page), {}))
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, IMAGES)
    path.write_text(with_outputs(page, printed), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
