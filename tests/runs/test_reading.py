"""Reading work directories."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from block_recurrent import LanguageModel
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import reading
from block_recurrent.runs.errors import SelectionError
from tests.synthetic_runs import TARGETS, load, paper, small, write_evaluation, write_run


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
        assert group.spread("bits_per_token").mean is None and group.tokens_seen() is None
        assert group.progress() == "0/4, not evaluated"


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    folder = write_run(tmp_path / "run", small(), [3.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "targ')
    assert reading.read_run(folder).step == 2


DAMAGE = {
    "no JSON": ('{"step": 3, "targ\n', "not JSON"),
    "no object": ("[1]\n", "expected a JSON object"),
    "no step": ('{"targets": 1}\n', "'step' must be a number"),
    "no number": ('{"step": 3, "targets": "many", "tokens_per_second": 1}\n', "'targets'"),
    "a figure less": ('{"step": 3, "validation/nats": 1.0}\n', "'validation/tokens'"),
    "no targets": (
        '{"step": 3, "validation/nats": 1.0, "validation/tokens": 0, "validation/bytes": 1, '
        '"validation/words": 1}\n',
        "an evaluation of no tokens",
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
    with pytest.raises(reading.RunError, match=r"evaluation_test\.json: not JSON"):
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
    before = jax.live_arrays()  # held, so that none of them is freed meanwhile
    assert reading.parameters_without_embedding(load(paper("rec_fixed_skip")).model) > 1.5e8
    assert len(jax.live_arrays()) == len(before)


def test_figures_of_different_text_under_one_name_are_refused(tmp_path):
    one, two = (write_run(tmp_path / name, small(), [3.0, 2.0]) for name in ("one", "two"))
    assert len(reading.read_runs([one, two])) == 2
    for run in (one, two):
        sums = {"nats": 1.0, "tokens": 1, "words": 1}
        line = {"step": 2, "corpus": "books", "documents": 1, **sums, "bytes": len(run.name)}
        (run / "evaluation_test.json").write_text(json.dumps(line), encoding="utf-8")
    assert len(reading.read_runs([one, two])) == 2
    metrics = two / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().replace('"validation/bytes": 1000', '"validation/bytes": 7')
    )
    with pytest.raises(
        SelectionError, match=r"different documents of .* validation of 'books', 1,000 and 7 bytes"
    ):
        reading.read_runs([one, two])
