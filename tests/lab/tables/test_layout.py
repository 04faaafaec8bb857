"""Text tables, pages, and the files they are written to."""

import builtins
import json
import math
import sys

import numpy as np
import pytest

from block_recurrent.lab.tables.layout import Page, TextTable, publish, short_count


def test_tables_say_the_same_in_every_form(tmp_path, capsys):
    table = TextTable(["row", "figure"], [["a", "1"], ["long", "23"]], ("row",))
    assert table.text().splitlines() == [
        "row   figure",
        "----  ------",
        "a          1",
        "long      23",
    ]
    assert table.markdown().splitlines()[1:] == ["| --- | ---: |", "| a | 1 |", "| long | 23 |"]
    values = {"x": math.nan, "y": (1, math.inf), "z": np.arange(2)}
    tables, draw = {"": table, "more": table}, lambda figure: None
    page = Page("t", tables, "What it is.", values, {"t": draw}, {"details": table})
    assert page.text().startswith("row") and "\n\nmore\n\nrow" in page.text()
    publish(page, tmp_path / "new")
    markdown = (tmp_path / "new/t.md").read_text()
    assert "## more" in markdown and "## details" in markdown and "(t.png)" in markdown
    found = json.loads((tmp_path / "new/t.json").read_text())
    assert found == {"x": None, "y": [1, None], "z": [0, 1], "description": "What it is."}
    assert (tmp_path / "new/t.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert shown.startswith(page.text()) and "details" not in shown
    assert all(f"written to {path}" in shown for path in (tmp_path / "new").iterdir())


def test_files_are_written_though_nobody_reads_what_is_printed(tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(builtins, "print", gone)
    table, draw = TextTable(["row"], [["a"]], ("row",)), lambda figure: None
    page = Page("t", {"": table}, "What it is.", {}, {"t": draw})
    with pytest.raises(BrokenPipeError):
        publish(page, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"t.md", "t.json", "t.png"}


def test_without_matplotlib_there_is_everything_but_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    table, draw = TextTable(["row"], [["a"]], ("row",)), lambda figure: None
    publish(Page("t", {"": table}, "What it is.", {}, {"t": draw}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"t.md", "t.json"}
    assert "![" not in (tmp_path / "t.md").read_text()
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "no picture" in text]
    assert "block_recurrent[plots]" in line


def test_counts_are_short():
    counts = [1.3e9, 1.6e8, 999, 238_542, 0.5]
    assert list(map(short_count, counts)) == ["1.3 B", "160 M", "999", "239 k", "0.5"]
