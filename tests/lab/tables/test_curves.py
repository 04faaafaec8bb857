"""Curves over seeds and paired differences from work directories."""

import json

import numpy as np
import pytest
from scipy import stats

from block_recurrent.lab.tables import curves
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.runs import reading
from experiments import curves as program
from tests.synthetic_runs import TARGETS, small, write_run

BITS = {"rec_fixed_skip": [2.0, 2.25, 1.75], "slide_4l": [2.125, 2.25, 2.0]}


def write_all(folder, corpus="latex", bits=BITS):
    return [
        write_run(
            folder / corpus / row / str(seed),
            small(row, corpus, training__seed=seed, data__seed=seed),
            [value + 1.0, value + 0.5, value + 0.25, value],
        )
        for row, values in bits.items()
        for seed, value in enumerate(values)
    ]


def sections_of(folders, against="Slide"):
    return curves.arrange(group_runs(reading.read_runs(folders)), against)


def test_differences_are_those_of_the_same_seeds(tmp_path):
    section = sections_of(write_all(tmp_path))["latex"]
    recurrent, slide = section.groups
    expected = np.subtract(*BITS.values())
    found = section.differences(recurrent)
    assert list(found) == [(0, 0), (1, 1), (2, 2)]
    np.testing.assert_allclose([d.bits for d in found.values()], expected, atol=1e-12)
    assert {d.tokens for d in found.values()} == {4 * TARGETS}
    assert section.reference is slide and section.differences(slide) == {}


def test_the_interval_is_that_of_a_paired_t_test(tmp_path, capsys):
    folders = list(map(str, write_all(tmp_path)))
    assert program.main([*folders, f"--output={tmp_path / 'out'}"]) == 0
    data = json.loads((tmp_path / "out/curves.json").read_text())["corpora"]["latex"]
    row = data["rows"][0]
    expected = stats.ttest_rel(*BITS.values()).confidence_interval(0.95)
    np.testing.assert_allclose(row["difference"]["bounds"], [expected.low, expected.high])
    np.testing.assert_allclose(
        [row["bits_per_byte"]["mean"], row["bits_per_byte"]["deviation"]],
        [np.mean(BITS["rec_fixed_skip"]), np.std(BITS["rec_fixed_skip"], ddof=1)],
    )
    printed = capsys.readouterr().out
    assert f"[{expected.low:+.4f}, {expected.high:+.4f}]" in printed
    assert "0: 2.0000, 1: 2.2500, 2: 1.7500" in printed
    assert f"{4 * TARGETS:,.0f}" in printed
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "latex: differences to Slide:4L" in (tmp_path / "out/curves.md").read_text()


def test_a_missing_seed_makes_no_pair(tmp_path):
    folders = write_all(tmp_path)
    section = sections_of(folders[1:])["latex"]
    assert list(section.differences(section.groups[0])) == [(1, 1), (2, 2)]


def test_differences_are_taken_after_the_last_tokens_that_both_have_seen(tmp_path):
    """Whether the other run is under way, or was finished earlier or later."""
    done = write_run(tmp_path / "done", small(), [4.0, 3.5, 3.0, 2.0])
    for steps in (4, 2):
        config = small("slide_4l", training__num_steps=steps)
        other = write_run(tmp_path / f"other{steps}", config, [4.0, 3.75])
        section = sections_of([done, other])["books"]
        page = curves.make_page({"books": section}, lambda figure: None)
        table = page.tables["books: differences to Slide:4L"]
        assert table.rows[0][-5:] == ["-0.2500", "-", "-", "1", "8.19 k"]
        assert "Not compared" not in page.description
    drawn = curves.difference_curve(section.groups[0].runs[0], section.reference.runs[0])
    assert [(d.tokens, d.bits) for d in drawn] == [(TARGETS, 0.0), (2 * TARGETS, -0.25)]


def test_runs_that_never_saw_as_many_tokens_are_named_with_the_counts(tmp_path):
    few = write_run(tmp_path / "few", small(), [2.0])
    many = write_run(tmp_path / "many", small("slide_4l"), [3.0] * 4)
    lines = (many / "metrics.jsonl").read_text().splitlines(keepends=True)
    (many / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))
    section = sections_of([few, many])["books"]
    page = curves.make_page({"books": section}, lambda figure: None)
    assert section.differences(section.groups[0]) == {}
    assert f"{few} (4,096 tokens) and {many} (16,384)" in page.description


def test_corpora_stand_apart(tmp_path):
    folders = write_all(tmp_path) + write_all(tmp_path, "books", {"rec_fixed_skip": [3.0]})
    sections = sections_of(folders)
    assert list(sections) == ["latex", "books"]
    assert sections["books"].reference is None
    assert sections["books"].differences(sections["books"].groups[0]) == {}


def test_the_reference_is_one_row_or_an_error(tmp_path):
    folders = write_all(tmp_path)
    assert sections_of(folders, "Rec")["latex"].reference.name == "Rec:fixed:skip"
    with pytest.raises(reading.RunError, match="there are Rec:fixed:skip, Slide:4L"):
        sections_of(folders, "XL")
    more = write_run(tmp_path / "more", small("slide_3l", "latex"), [2.0] * 4)
    with pytest.raises(reading.RunError, match="Slide:4L; Slide:3L"):
        sections_of([*folders, more])
    assert sections_of([*folders, more], "Slide:3L")["latex"].reference.name == "Slide:3L"


def test_rows_of_a_family_look_different(tmp_path):
    folders = [write_run(tmp_path / row, small(row), [2.0] * 4) for row in ("slide_3l", "slide_4l")]
    section = sections_of(folders, "Slide:3L")["books"]
    first, second = (style for _, style in section.styled())
    assert first["color"] == second["color"] and first["linestyle"] != second["linestyle"]


def test_a_reference_that_no_row_has_ends_in_status_2(tmp_path, capsys):
    folders = list(map(str, write_all(tmp_path)))
    assert program.main([*folders, "--against=XL", f"--output={tmp_path / 'out'}"]) == 2
    assert "--against=XL" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_by_a_parameter_runs_are_compared_where_it_is_equal(tmp_path, capsys):
    folders = []
    for window, better in ((8, 0.25), (16, 0.125)):
        for row, bits in (("rec_fixed_skip", 2.0 - better), ("slide_4l", 2.0)):
            for seed in (0, 1):
                values = {"model__window": window, "training__seed": seed, "data__seed": seed}
                folder = tmp_path / f"{window}" / row / f"{seed}"
                noise = 0.0625 * seed * (row == "slide_4l")
                folders.append(
                    write_run(folder, small(row, "books", **values), [3.0, bits + noise])
                )
    options = [f"--output={tmp_path / 'out'}", "--by=model.window"]
    assert program.main([*map(str, folders), *options]) == 0
    found = json.loads((tmp_path / "out/curves.json").read_text())["corpora"]
    assert list(found) == ["books, model.window = 8", "books, model.window = 16"]
    for (title, corpus), better in zip(found.items(), (0.25, 0.125), strict=True):
        pairs = {row["row"]: row["difference"]["pairs"] for row in corpus["rows"]}
        differences = [pair["difference"] for pair in pairs["Rec:fixed:skip"]]
        np.testing.assert_allclose(differences, [-better, -better - 0.0625], err_msg=title)
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "books, model.window = 16: differences to Slide:4L" in capsys.readouterr().out
