"""Bits per token against parameters from work directories."""

import json

import pytest

from block_recurrent.lab.tables import scaling
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.runs import reading
from experiments import scaling as program
from tests.synthetic_runs import paper, small, write_run


def columns_of(*folders):
    return scaling.by_column(group_runs(reading.read_runs(folders)))


def test_rows_stand_by_size_in_the_table_of_their_corpus(tmp_path):
    columns = columns_of(
        write_run(tmp_path / "5", small("slide_4l"), [2.0] * 4),
        write_run(tmp_path / "4", small("slide_3l"), [3.0] * 4),
        write_run(tmp_path / "rec", small(), [1.0] * 4),
        write_run(tmp_path / "pg19", paper("slide_13l", data__tokenizer="sentencepiece"), [4.0]),
    )
    assert list(columns) == ["PG19 tokens", "books, bytes"]
    rows = scaling.make_page(columns).tables["books, bytes"].rows
    assert [row[0] for row in rows] == ["Slide:3L", "Rec:fixed:skip", "Slide:4L"]
    assert [row[2] for row in rows] == ["no", "yes", "no"]
    assert [row[3] for row in rows] == ["3.000", "1.000", "2.000"]


def test_the_papers_points_stand_with_its_tokens_only(tmp_path):
    page = scaling.make_page(columns_of(write_run(tmp_path / "a", small(), [1.0] * 4)))
    rows = page.tables["PG19 tokens"].rows
    assert [row[1:4] for row in rows] == [["1.3 B", "yes", "3.22"], ["1.3 B", "no", "3.31"]]
    assert not any("paper" in row[0] for row in page.tables["books, bytes"].rows)


def findings_of(tmp_path, bits):
    runs = [
        write_run(
            tmp_path / f"{row}{size}{seed}",
            small(row, model__model_size=size, training__seed=seed),
            [value] * 4,
        )
        for (row, size), values in bits.items()
        for seed, value in enumerate(values)
    ]
    return scaling.findings(group_runs(reading.read_runs(runs)))


def test_the_title_says_how_far_a_recurrent_row_is_from_slide_at_the_same_sizes(tmp_path):
    rec, slide = "rec_fixed_skip", "slide_4l"
    below = {(rec, 32): [2.0], (slide, 32): [2.1], (rec, 64): [1.5], (slide, 64): [1.75]}
    end = "beyond the 95 % interval of seeds at none"
    words = f"Rec:fixed:skip is 0.10 to 0.25 bits a token below Slide:4L at 2 sizes, {end}"
    assert findings_of(tmp_path / "below", below) == [words]
    above = {(rec, 32): [2.5], (slide, 32): [2.1], (rec, 64): [1.5]}
    words = f"Rec:fixed:skip is 0.40 bits a token above Slide:4L at one size, {end}"
    assert findings_of(tmp_path / "above", above) == [words]
    assert findings_of(tmp_path / "mixed", below | {(rec, 64): [1.8]}) == []
    assert findings_of(tmp_path / "alone", {(rec, 32): [2.0]}) == []


def test_the_title_says_at_how_many_sizes_seeds_support_it(tmp_path):
    # Differences of 0.1 by 0.01 of each other, and of 0.1 by 0.1: intervals of 0.025 and 0.25.
    bits = {
        ("rec_fixed_skip", 32): [2.00, 2.01, 2.02],
        ("slide_4l", 32): [2.11, 2.11, 2.11],
        ("rec_fixed_skip", 64): [2.00, 2.10, 2.20],
        ("slide_4l", 64): [2.20, 2.20, 2.20],
    }
    words = "0.10 bits a token below Slide:4L at 2 sizes, beyond the 95 % interval of seeds at 1"
    first, second = findings_of(tmp_path, bits)
    assert first == f"Rec:fixed:skip is {words}"
    assert second.startswith(
        "With ten times the parameters Rec:fixed:skip minus Slide:4L changes by"
    )


def test_a_trend_over_sizes_has_the_interval_of_a_regression():
    exact = {10**5: [-0.1, -0.1], 10**6: [-0.3, -0.3]}
    assert scaling.fit_trend(exact) == pytest.approx((-0.2, 0.0))
    # Residuals are 0.01 each way: a variance of 4e-4 / 2, over a sum of squares of 1.
    spread_out = {10**5: [-0.11, -0.09], 10**6: [-0.31, -0.29]}
    half_width = 4.302653 * (4e-4 / 2) ** 0.5
    assert scaling.fit_trend(spread_out) == pytest.approx((-0.2, half_width))
    assert scaling.fit_trend({10**5: [-0.1] * 3}) is None
    assert scaling.fit_trend({10**5: [-0.1], 10**6: [-0.2]}) is None


def test_a_run_without_figures_is_in_the_table_and_not_in_the_picture(tmp_path, capsys):
    folders = [
        write_run(tmp_path / "none", small("slide_3l", corpus="latex"), []),
        write_run(tmp_path / "some", small("slide_4l"), [3.0, 2.0]),
    ]
    assert program.main([*map(str, folders), f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "0/4, not evaluated" in printed and "2.000 @2" in printed
    data = json.loads((tmp_path / "out/scaling.json").read_text())
    assert data["columns"]["latex, bytes"][0]["bits_per_token"]["mean"] is None
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "latex, bytes" in (tmp_path / "out/scaling.md").read_text()
