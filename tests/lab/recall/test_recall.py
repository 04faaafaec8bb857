"""Laws of what is measured of a memory, and the program `recall`."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from block_recurrent import gin_files
from block_recurrent.lab.recall import recall as program
from block_recurrent.lab.recall.facts import Task
from block_recurrent.lab.recall.recall import GAPS, accuracy
from experiments import recall

TASK = Task(facts=3, keys=4, shortest=4, longest=20)
CONFIG = gin_files.load(["recall.gin"], ["data.batch_size=4", "data.segment_length=32"])


class Notebook(NamedTuple):
    """In place of a model, one that writes down what followed each token, and forgets by itself.

    Attributes:
      keeps: 1 if it reads its notes of the segment before, 0 if it begins anew.
    """

    keeps: Any

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, 257), jnp.int32)

    def features(self, tokens, notes):
        def read(carried, token):
            notes, before = carried
            rows = jnp.arange(len(token))
            notes = notes.at[rows, before].set(token)
            return (notes, token), notes[rows, token]

        nothing = jnp.full(len(tokens), 256)
        (notes, _), told = jax.lax.scan(read, (self.keeps * notes, nothing), tokens.T)
        return told.T, notes

    def logits(self, told):
        return jax.nn.one_hot(told, 256)


@pytest.mark.parametrize("gap", [0, 5, 40, 100, 4096])
def test_who_remembers_everything_is_always_right(gap):
    assert accuracy(CONFIG, Notebook(jnp.int32(1)), TASK, gap) == 1.0  # type: ignore[arg-type]


def test_who_forgets_is_right_within_a_segment_only():
    forgets: Any = Notebook(jnp.int32(0))
    assert accuracy(CONFIG, forgets, TASK, 20) == 1.0
    assert accuracy(CONFIG, forgets, TASK, 100) == 0.0


SMALL = {
    "model.num_layers": 2,
    "model.model_size": 8,
    "model.head_size": 4,
    "model.mlp_size": 8,
    "data.batch_size": 2,
    "training.num_steps": 3,
}


def test_results_are_added_up_and_nothing_is_trained_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "GAPS", GAPS[:3])
    words = [f"--gin.{name}={value!r}" for name, value in SMALL.items()]
    words += [f"--workdir={tmp_path}", "--longest=40"]
    assert recall.main([*words, "--rows", "Rec:lstm:single"]) == 0
    first = {path: path.read_bytes() for path in tmp_path.glob("*-*.json")}
    assert len(first) == 1
    with monkeypatch.context() as patch:
        patch.setattr(program, "learn", lambda *_: pytest.fail("trained again"))
        assert recall.main([*words, "--rows", "Rec:lstm:single"]) == 0
    capsys.readouterr()
    other = ["--rows", "Slide:3L", "--facts=1", "--gin.training.seed=1"]
    assert recall.main([*words, *other]) == 0
    assert {path: path.read_bytes() for path in first} == first
    output = capsys.readouterr().out
    assert output.count("Rec:lstm:single") == output.count("Slide:3L") == 1
    page = json.loads((tmp_path / "recall.json").read_text())
    assert sorted(each["facts"] for each in page["results"]) == [1, 2]
    assert all(each["right"].keys() == {"16", "32", "64"} for each in page["results"])
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_only_seeds_are_averaged(tmp_path):
    """Models that differ in anything else are rows of their own, and say in what."""
    base = gin_files.load(["recall.gin"], ["model.gate=lstm", "model.wiring=single"])

    def result(right, *, seed=0, **model):
        training = dataclasses.replace(base.training, seed=seed)
        config = dataclasses.replace(
            base, model=dataclasses.replace(base.model, **model), training=training
        )
        sizes = {"parameters": 1, "states": 16, "steps": 3000, "nats": 1.0}
        share = {str(gap): right for gap in GAPS}
        text = gin_files.to_gin(config)
        return {"row": "Rec:lstm:single", **sizes, **TASK._asdict(), "right": share, "config": text}

    results = [result(0.2), result(0.4, seed=1), result(0.9, recurrent_layers=(-1,))]
    lines = program.make_page(results).tables[""].rows
    assert [(line[0], line[6], line[-1]) for line in lines] == [
        ("Rec:lstm:single (recurrent_layers = (-2,))", "2", "30"),
        ("Rec:lstm:single (recurrent_layers = (-1,))", "1", "90"),
    ]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--facts=5", "--keys=4"], "no more facts than keys"),
        (["--keys=17"], "at most 16"),
        (["--shortest=2000"], "--shortest=2000 is more than --longest=1000"),
        (["--rows", "Rec:lstm:sngle"], "did you mean 'Rec:lstm:single'"),
    ],
)
def test_wrong_tasks_are_refused(words, sentence, tmp_path, capsys):
    try:
        status = recall.main([*words, f"--workdir={tmp_path / 'run'}"])
    except SystemExit as error:
        status = error.code
    assert status == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
