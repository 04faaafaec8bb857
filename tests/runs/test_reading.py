"""Reading work directories, and their groups by configuration."""

import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from block_recurrent import LanguageModel, gin_files
from block_recurrent.model.parameters import count_parameters
from block_recurrent.reports.groups import group_runs, summarize
from block_recurrent.reports.layout import Page, Table, short_count, write_files
from block_recurrent.reports.naming import column, distinct_names, paper_row, paper_rows, row_name
from block_recurrent.reports.paper import TABLE_1
from block_recurrent.runs import reading
from tests.programs import main_of
from tests.synthetic_runs import TARGETS, exit_status, paper, small, write_evaluation, write_run

COLLECTING = ("table1", "table2", "scaling", "curves")


def load(made):
    return gin_files.load(made["files"], [f"{n}={v!r}" for n, v in made["values"].items()])


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = reading.read_run(write_run(tmp_path / "run", small(), [3.0, 2.5, 2.0, 1.75], speed=70.0))
    assert [point.step for point in run.points] == [1, 2, 3, 4]
    assert [point.tokens_seen for point in run.points] == [TARGETS * n for n in (1, 2, 3, 4)]
    bits = [point.evaluation.bits_per_token for point in run.points]
    np.testing.assert_allclose(bits, [3.0, 2.5, 2.0, 1.75], rtol=1e-12)
    assert run.finished and run.step == 4 and run.tokens_per_second == 70.0
    assert run.config == load(small())


def test_the_speed_is_the_median_of_the_training_lines(tmp_path):
    folder = write_run(tmp_path / "run", small(), [])
    lines = [f'{{"step": {n}, "targets": 1, "tokens_per_second": {n * n}}}\n' for n in (1, 2, 3)]
    untimed = '{"step": 4, "targets": 1}\n'
    (folder / "metrics.jsonl").write_text("".join([*lines, untimed]))
    assert reading.read_run(folder).tokens_per_second == 4


def test_a_run_without_figures_is_unfinished(tmp_path):
    folder = write_run(tmp_path / "run", small(), [])
    for change in (lambda: None, (folder / "metrics.jsonl").unlink):
        change()
        run = reading.read_run(folder)
        assert not run.finished and run.points == () and run.step == 0
        assert run.tokens_per_second is None
        (group,) = group_runs([run])
        assert group.summary("bits_per_token").mean is None and group.tokens_seen() is None
        assert group.progress() == "0/4, not evaluated"


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    folder = write_run(tmp_path / "run", small(), [3.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "targ')
    assert reading.read_run(folder).step == 2


DAMAGE = {
    "no JSON": ('{"step": 3, "targ\n', "no JSON"),
    "no object": ("[1]\n", "expected a JSON object"),
    "no step": ('{"targets": 1}\n', "'step' must be a number"),
    "no number": ('{"step": 3, "targets": "many", "tokens_per_second": 1}\n', "'targets'"),
    "a figure less": ('{"step": 3, "validation/nats": 1.0}\n', "'validation/tokens'"),
    "no targets": (
        '{"step": 3, "validation/nats": 1.0, "validation/tokens": 0, "validation/bytes": 1, '
        '"validation/words": 1}\n',
        "an evaluation of nothing",
    ),
}


@pytest.mark.parametrize("line, words", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_named(line, words, tmp_path):
    folder = write_run(tmp_path / "run", small(), [3.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(reading.RunError) as caught:
        reading.read_run(folder)
    assert str(caught.value).startswith(f"{folder}/metrics.jsonl:5: ")
    assert words in str(caught.value)


def test_a_damaged_evaluation_is_named(tmp_path):
    folder = write_run(tmp_path / "run", paper("slide_13l"), [1.0])
    (folder / "evaluation_test.json").write_text("{")
    with pytest.raises(reading.RunError, match=r"evaluation_test\.json: no JSON"):
        reading.read_run(folder)


def test_evaluations_on_other_corpora_are_not_the_runs(tmp_path):
    folder = write_run(tmp_path / "run", small(), [3.0])
    write_evaluation(folder, "test", 100, nats=1.0, tokens=1, bytes=1, words=1)
    assert reading.read_run(folder).scored == {}


def test_a_directory_without_a_run_and_a_run_given_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        reading.read_runs([tmp_path])
    folder = write_run(tmp_path / "run", small(), [3.0])
    with pytest.raises(reading.RunError, match="given twice"):
        reading.read_runs([folder, folder / ".." / "run"])


@pytest.mark.parametrize("name", COLLECTING)
def test_a_program_over_all_folders_says_the_same_when_its_own_output_is_among_them(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"), paper("slide_13l"), [2.0])
    said = []
    for _ in range(2):
        folders = sorted(Path("runs").iterdir())
        assert exit_status(main_of(name), *folders) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out and said[0].err == ""
    assert said[1].err == f"left out: runs/{name} holds no run\n"


@pytest.mark.parametrize("name", COLLECTING)
def test_without_any_run_a_program_ends_in_status_2(name, tmp_path, capsys):
    assert exit_status(main_of(name), tmp_path) == 2
    output, errors = capsys.readouterr()
    left_out, error = errors.splitlines()
    assert output == "" and left_out == f"left out: {tmp_path} holds no run"
    assert "error: " in error and "no run is left" in error


def test_a_folder_that_does_not_exist_is_refused_beside_runs(tmp_path, capsys):
    write_run(tmp_path / "run", small(), [3.0])
    missing = tmp_path / "none"
    assert exit_status(main_of("table1"), tmp_path / "run", missing) == 2
    assert f"{missing} holds no run" in capsys.readouterr().err


def test_a_configuration_from_before_the_newest_fields_loads(tmp_path):
    folder = write_run(tmp_path / "run", small(), [3.0])
    lines = (folder / "config.gin").read_text().splitlines(keepends=True)
    new = ("data.name", "data.vocab", "data.cache", "training.clear_states")
    kept = "".join(line for line in lines if not line.startswith(new))
    assert len(kept.splitlines()) < len(lines)
    (folder / "config.gin").write_text(kept)
    assert reading.read_run(folder).config == load(small())


def test_parameters_are_those_of_the_model():
    config = load(small(model__num_layers=1, model__recurrent_layers=(0,))).model
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    assert reading.parameters_without_embedding(config) == count_parameters(model, embedding=False)


def test_parameters_of_a_large_model_need_no_memory():
    before = len(jax.live_arrays())
    assert reading.parameters_without_embedding(load(paper("rec_fixed_skip")).model) > 1.5e8
    assert len(jax.live_arrays()) == before


def test_every_row_of_the_paper_has_its_own_name():
    names = [row_name(row.config) for row in paper_rows()]
    assert names == [row.paper for row in paper_rows()]
    assert all(paper_row(row.config) is row for row in paper_rows())
    assert set(TABLE_1) <= set(names)


@pytest.mark.parametrize(
    "changed",
    [
        {"model__num_states": 1024},
        {"training__clear_states": True},
        {"model__recurrent_layers": (-4, -3)},
        {"model__mlp_size": 2048},
        {"data__segment_length": 2048},
        {"model__positions": "rotary"},
    ],
    ids=str,
)
def test_another_architecture_is_no_row_of_the_paper(changed):
    assert paper_row(load(paper("rec_fixed_skip", **changed))) is None


def test_vocabulary_batch_and_seeds_leave_the_row_as_it_is():
    changed = {"model__vocab_size": 32_000, "data__batch_size": 8, "training__seed": 5}
    found = paper_row(load(paper("rec_fixed_skip", **changed)))
    assert found is not None and found.paper == "Rec:fixed:skip"


def test_columns_follow_from_name_and_tokenizer():
    def of(name, tokenizer):
        return column(load(paper("slide_13l", data__name=name, data__tokenizer=tokenizer)))

    assert of("PG19", "bytes") == "PG19 bytes"
    assert of("pg19", "sentencepiece") == "PG19 tokens"
    assert of("arXiv", "sentencepiece") == "arXiv"
    assert of("GitHub", "sentencepiece") == "GitHub"
    assert of("arXiv", "bytes") == "arXiv, bytes"
    assert load(small(corpus="latex")).data.corpus_name == "latex"
    assert gin_files.load(["table.gin"]).data.corpus_name == "stdlib"


def test_groups_are_runs_that_differ_in_seeds_only(tmp_path):
    made = [
        small(training__seed=1),
        small(training__seed=0, data__seed=1),
        small(training__seed=0),
        small("slide_5l"),
        small(corpus="latex"),
        small(optimizer__learning_rate=0.1),
    ]
    folders = [write_run(tmp_path / str(n), one, [2.0]) for n, one in enumerate(made)]
    groups = group_runs(reading.read_runs(folders))
    assert [[run.workdir.name for run in group.runs] for group in groups] == [
        ["2", "1", "0"],
        ["3"],
        ["4"],
        ["5"],
    ]
    assert [group.name for group in groups][1:3] == ["Slide:5L", "Rec:fixed:skip"]
    assert len({group.name for group in groups if group is not groups[2]}) == 3


def test_the_same_run_does_not_count_twice(tmp_path):
    folders = [write_run(tmp_path / name, small(), [2.0]) for name in "ab"]
    with pytest.raises(reading.RunError, match="/a and .*/b hold the same run"):
        group_runs(reading.read_runs(folders))


def test_names_tell_what_is_unusual():
    usual, other, third = (load(small(model__num_states=n)) for n in (64, 32, 16))
    assert distinct_names([usual]) == ["Rec:fixed:skip"]
    both = ["Rec:fixed:skip (num_states = 64)", "Rec:fixed:skip (num_states = 32)"]
    assert distinct_names([usual, other]) == both
    faster = load(small(optimizer__learning_rate=0.1))
    assert distinct_names([usual, faster, third])[2] == "Rec:fixed:skip (num_states = 16)"


def test_figures_are_of_finished_runs_or_of_a_step_that_all_have(tmp_path):
    def final(name, *bits):
        folders = [
            write_run(tmp_path / name / str(n), small(training__seed=n), values)
            for n, values in enumerate(bits)
        ]
        (group,) = group_runs(reading.read_runs(folders))
        return group, [(run.seeds[0], point.step) for run, point in group.final()]

    group, found = final("finished", [4.0, 3.0, 2.0, 1.0], [4.0, 3.0], [])
    assert found == [(0, 4)] and group.finished and group.cell("bits_per_token") == "1.000"
    group, found = final("unfinished", [4.0, 3.0, 2.0], [4.0, 2.0], [])
    assert found == [(0, 2), (1, 2)] and not group.finished
    assert group.cell("bits_per_token") == "2.500 ± 0.707 (2) @2"
    assert group.progress() == "2/4"


@pytest.mark.parametrize("n", [2, 3, 7])
def test_mean_and_spread_are_numpys(n):
    values = np.random.default_rng(n).normal(2.0, 0.1, n).tolist()
    found = summarize(values)
    np.testing.assert_allclose(
        [found.mean, found.deviation], [np.mean(values), np.std(values, ddof=1)]
    )
    quantile = {2: 12.7062, 3: 4.3027, 7: 2.4469}[n]
    expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
    np.testing.assert_allclose(found.interval, expected, rtol=1e-4)
    assert found.n == n


def test_one_figure_has_no_spread_and_none_no_mean():
    assert summarize([2.0]) == (2.0, None, None, 1)
    assert summarize([]) == (None, None, None, 0)


def test_tables_say_the_same_in_every_form(tmp_path):
    table = Table(["row", "figure"], [["a", "1"], ["long", "23"]], ("row",))
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


@pytest.mark.parametrize("name", COLLECTING)
def test_without_matplotlib_there_is_everything_but_the_picture(
    name, tmp_path, capsys, monkeypatch
):
    write_run(tmp_path / "a", paper("slide_13l"), [2.0])
    main = main_of(name)
    with_picture, without = tmp_path / "with", tmp_path / "without"
    assert main([str(tmp_path / "a"), f"--output={with_picture}"]) == 0
    shown = capsys.readouterr().out.partition("written to")[0]
    for module in [module for module in sys.modules if module.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(tmp_path / "a"), f"--output={without}"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(shown)
    assert output.splitlines().count("no picture: pip install '.[plots]'") == 1
    assert sorted(path.name for path in without.iterdir()) == [f"{name}.json", f"{name}.md"]
    assert (without / f"{name}.json").read_text() == (with_picture / f"{name}.json").read_text()
    full, plain = ((f / f"{name}.md").read_text() for f in (with_picture, without))
    assert ".png" in full and ".png" not in plain
    assert plain.rstrip() == full.partition("![")[0].rstrip()


def test_counts_are_short():
    counts = [1.3e9, 1.6e8, 999, 238_542, 0.5]
    assert list(map(short_count, counts)) == ["1.3 B", "160 M", "999", "239 k", "0.5"]
