"""The paper's Table 1 from work directories."""

import json
import re

import pytest

from block_recurrent.lab.tables import table1
from block_recurrent.lab.tables.paper import TABLE_1
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.runs import reading
from experiments import table1 as program
from tests.synthetic_runs import exit_status, paper, small, write_run

TOKENS = {"data__tokenizer": "sentencepiece"}


def make_table(*folders):
    return table1.arrange(group_runs(reading.read_runs(folders)))


def rows_of(table):
    """The cells of the paper's table by row."""
    return {row[0]: row[1:] for row in table1.make_page(table).tables[""].rows}


def test_without_a_run_there_are_only_the_papers_figures(tmp_path):
    rows = rows_of(make_table(write_run(tmp_path / "a", small(), [])))
    assert len(rows) == 13
    shown = {cell for row in rows.values() for cell in row[2:]}
    published = {f"{x:.2f}" for row in TABLE_1.values() for x in row if x} | {
        "0.952",
        "0.990",
        "0.976",
    }
    assert shown <= published | {"-", "see paper"}
    assert all(row[2] == "-" and set(row[4:-1:2]) == {"-"} for row in rows.values())


def test_every_figure_stands_beside_the_papers(tmp_path):
    folders = [
        write_run(tmp_path / "bytes", paper("rec_fixed_skip"), [1.5, 1.25, 1.125, 1.0625]),
        write_run(tmp_path / "tokens", paper("xl_512", **TOKENS), [5.0, 4.0, 3.75, 3.625]),
        write_run(tmp_path / "arxiv", paper("slide_13l", data__name="arXiv", **TOKENS), [2.0] * 4),
    ]
    rows = rows_of(make_table(*folders))
    assert rows["Rec:fixed:skip"][4:6] == ["1.062", "0.952"]
    assert rows["XL:512"][6:8] == ["3.625", "3.62"]
    assert rows["Slide:13L"][8:10] == ["2.000", "1.42"]
    figures = [cell for row in rows.values() for cell in row[4:-1:2] if cell != "-"]
    assert sorted(figures) == ["1.062", "2.000", "3.625"]
    assert rows["XL:512"][-1] == "4" and rows["XL:1024"][-1] == "-"


def test_an_unfinished_run_is_marked_with_its_step(tmp_path):
    table = make_table(write_run(tmp_path / "a", paper("xl_2048"), [3.0, 2.0]))
    assert rows_of(table)["XL:2048"][4] == "2.000 @2"
    assert rows_of(table)["XL:2048"][-1] == "2/4"


def test_seeds_have_a_mean_and_a_spread(tmp_path):
    bits = [1.0, 1.5, 1.75]
    folders = [
        write_run(tmp_path / str(seed), paper("slide_12l", training__seed=seed), [value] * 4)
        for seed, value in enumerate(bits)
    ]
    assert rows_of(make_table(*folders))["Slide:12L"][4] == "1.417 ± 0.382 (3)"


def test_step_time_is_relative_to_the_reference_on_the_same_corpus(tmp_path):
    slow = write_run(tmp_path / "slow", paper("rec_fixed_skip"), [1.0] * 4, speed=50.0)
    other = write_run(tmp_path / "other", paper("slide_13l", **TOKENS), [1.0] * 4, speed=200.0)
    assert make_table(slow, other).step_time("Rec:fixed:skip") is None
    same = write_run(tmp_path / "same", paper("slide_13l"), [1.0] * 4, speed=60.0)
    table = make_table(slow, other, same)
    assert table.step_time("Rec:fixed:skip") == pytest.approx(1.2)
    assert table.step_time("Slide:13L") == 1.0 and table.step_time("XL:512") is None


def test_what_fits_no_row_or_column_stands_below(tmp_path):
    table = make_table(
        write_run(tmp_path / "small", small("slide_4l", "latex"), [2.0] * 4),
        write_run(
            tmp_path / "cleared", paper("rec_fixed_skip", training__clear_states=True), [1.0]
        ),
    )
    assert table.cells == {}
    assert set(table.others) == {"PG19 bytes", "latex, bytes"}
    below = table1.make_page(table).tables["Other runs: latex, bytes"]
    assert below.rows[0][0] == "Slide:4L" and "2.000" in below.rows[0]


def test_one_cell_holds_one_configuration(tmp_path):
    less = write_run(tmp_path / "less", paper("slide_13l", data__batch_size=8), [1.0, 1.0])
    more = write_run(tmp_path / "more", paper("slide_13l"), [2.0, 2.0, 2.0])
    table = make_table(less, more)
    assert rows_of(table)["Slide:13L"][4] == "2.000 @3"
    (left,) = table.others["PG19 bytes"]
    assert left.name == "Slide:13L (batch_size = 8)"


def test_files_hold_what_was_printed(tmp_path, capsys):
    folder = write_run(tmp_path / "a", paper("rec_fixed_skip"), [3.0, 2.0, 1.5, 1.0])
    latex = write_run(tmp_path / "b", small(corpus="latex"), [4.0, 2.0])
    output = tmp_path / "out" / "new"
    assert program.main([str(folder), str(latex), f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    data = json.loads((output / "table1.json").read_text())
    cells = {row["row"]: row["cells"] for row in data["rows"]}
    assert cells["Rec:fixed:skip"]["pg19_bytes"]["bits_per_token"]["mean"] == pytest.approx(1.0)
    assert cells["Rec:fixed:skip"]["arxiv"] is None and cells["XL:512"]["pg19_bytes"] is None
    assert len(data["others"]["latex, bytes"][0]["runs"][0]["validation"]) == 2
    assert (output / "table1.png").read_bytes().startswith(b"\x89PNG")
    markdown = (output / "table1.md").read_text()
    numbers = re.compile(r"\d[\d.,]*")
    assert set(numbers.findall(printed.partition("written")[0])) <= set(numbers.findall(markdown))


def test_other_models_stand_below_without_figures_of_the_paper(tmp_path):
    names = ("lstm", "transformer", "transformer_xl")
    folders = [write_run(tmp_path / row, paper(row), [2.0, 1.5, 1.25, 1.125]) for row in names]
    page = table1.make_page(make_table(*folders))
    table = page.tables["Other runs: PG19 bytes"]
    shown = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(shown) == ["LSTM", "Transformer:512", "Transformer-XL:512"]
    assert [row["window"] for row in shown.values()] == ["", "", "512"]
    assert {row["bits/token"] for row in shown.values()} == {"1.125"}
    assert exit_status(program.main, *folders, f"--output={tmp_path / 'out'}") == 0
    assert "LSTM" in (tmp_path / "out" / "table1.md").read_text(encoding="utf-8")
