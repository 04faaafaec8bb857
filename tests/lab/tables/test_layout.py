"""Text tables, pages, and the files they are written to."""

import builtins
import json
import math

import pytest

from block_recurrent.lab.tables.layout import Page, TextTable, present, short_count, write_files


def test_tables_say_the_same_in_every_form(tmp_path):
    table = TextTable(["row", "figure"], [["a", "1"], ["long", "23"]], ("row",))
    assert table.text().splitlines() == [
        "row   figure",
        "----  ------",
        "a          1",
        "long      23",
    ]
    assert table.markdown().splitlines()[1:] == ["| --- | ---: |", "| a | 1 |", "| long | 23 |"]
    page = Page({"": table, "more": table}, "What it is.", {"x": math.nan, "y": (1, math.inf)})
    assert page.text().startswith("row") and "\n\nmore\n\nrow" in page.text()
    markdown, data, picture = write_files(
        tmp_path / "new", "t", page.markdown, page.data, lambda figure: None
    )
    assert "## more" in markdown.read_text() and "(t.png)" in markdown.read_text()
    assert json.loads(data.read_text()) == {"x": None, "y": [1, None]}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_files_are_written_though_nobody_reads_what_is_printed(tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(builtins, "print", gone)
    page = Page({"": TextTable(["row"], [["a"]], ("row",))}, "What it is.", {})
    with pytest.raises(BrokenPipeError):
        present(page, lambda figure: None, tmp_path, "t")
    assert {path.name for path in tmp_path.iterdir()} == {"t.md", "t.json", "t.png"}


def test_counts_are_short():
    counts = [1.3e9, 1.6e8, 999, 238_542, 0.5]
    assert list(map(short_count, counts)) == ["1.3 B", "160 M", "999", "239 k", "0.5"]
