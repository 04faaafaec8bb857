"""Laws of a run that goes on: with what it began with, batch for batch, or not at all."""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from block_recurrent.data import DataError, Document
from block_recurrent.lab.corpora.train_vocab import train_vocabulary
from block_recurrent.runs.identity import WHAT, check_same_data
from tests import quick_runs
from tests.quick_runs import STEPS, TEXT, Steps, run, tree_of, write_corpus, write_gin

WRONG_CONFIG, WRONG_DATA = 2, 3
MORE = STEPS + 3
PROSE = "The state of a layer goes in and comes out.\n    def f(x):\n        return x\n"


class Begun(NamedTuple):
    """A configuration `tiny.gin` in `inputs`, its run of six steps, and the batches of nine."""

    inputs: Path
    workdir: Path
    batches: dict[int, Any]


def begin(inputs: Path) -> Begun:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        assert run(inputs, inputs / "whole", f"--gin.training.num_steps={MORE}") == 0
        assert run(inputs, inputs / "begun") == 0
    return Begun(inputs, inputs / "begun", steps.batches)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Begun:
    return begin(quick_runs.make_inputs(tmp_path_factory.mktemp("inputs")))


@pytest.fixture(scope="module")
def begun_with_vocabulary(tmp_path_factory) -> Begun:
    """With a vocabulary `words.model`; `other.model` is another one."""
    inputs = quick_runs.make_inputs(tmp_path_factory.mktemp("words"))
    for name, size in {"words": 300, "other": 296}.items():
        document = Document("a", "", TEXT * 5 + PROSE * 20)
        (inputs / f"{name}.model").write_bytes(train_vocabulary([document], size))
    values = {"data.path": str(inputs / "books"), "model.vocab_size": 300}
    values |= {"data.tokenizer": "sentencepiece", **vocabulary(inputs / "words.model")}
    write_gin(inputs / "tiny.gin", values)
    return begin(inputs)


def vocabulary(path: Path) -> dict[str, str]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"data.vocab_path": str(path), "data.vocab_sha256": sha256}


def go_on(begun: Begun, workdir: Path, *options: str) -> int:
    """Continues a copy of the run; returns the exit status."""
    shutil.copytree(begun.workdir, workdir)
    return run(begun.inputs, workdir, f"--gin.training.num_steps={MORE}", *options)


def assert_refused(begun, tmp_path, capsys, status, words, *options) -> None:
    shutil.copytree(begun.workdir, tmp_path / "run")
    before = tree_of(tmp_path)
    shutil.rmtree(tmp_path / "run")
    assert go_on(begun, tmp_path / "run", *options) == status
    message = capsys.readouterr().err.partition("error: ")[2]
    assert all(word in message for word in [*words, str(tmp_path / "run")]), message
    assert "Traceback" not in message
    assert tree_of(tmp_path) == before


CHANGES = {
    "training.seed": (0, 1),
    "training.clear_states": (False, True),
    "training.state_passing": (0.0, 0.5),
    "data.seed": (0, 7),
    "data.batch_size": (2, 3),
    "data.segment_length": (8, 16),
    "data.validation_percent": (10, 20),
    "data.end_of_document": (False, True),
    "data.source": ("'jsonl'", "'text'"),
    "model.vocab_size": (256, 300),
    "model.num_layers": (1, 2),
    "model.window": (4, 8),
    "model.gate": ("'fixed'", "'lstm'"),
    "model.recurrent_layers": ("(0,)", "()"),
    "model.dtype": ("'float32'", "'bfloat16'"),
    "optimizer.name": ("'adafactor'", "'adamw'"),
    "optimizer.learning_rate": ("1.0", "0.5"),
    "optimizer.clip_norm": ("None", "1.0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_configuration_is_refused(name, begun, tmp_path, steps, capsys):
    old, new = CHANGES[name]
    words = [f"{name} = {old}, now {new}"]
    assert_refused(begun, tmp_path, capsys, WRONG_CONFIG, words, f"--gin.{name}={new}")
    assert steps.batches == {}


def test_all_that_is_different_is_named_at_once(begun, tmp_path, steps, capsys):
    names = ("training.seed", "data.batch_size", "model.num_layers", "optimizer.name")
    words = [f"{name} = {CHANGES[name][0]}, now {CHANGES[name][1]}" for name in names]
    options = [f"--gin.{name}={CHANGES[name][1]}" for name in names]
    assert_refused(begun, tmp_path, capsys, WRONG_CONFIG, words, *options)


DOCUMENTS = {
    "train": ["training documents: "],
    "validation": ["validation documents: "],
    "both": ["training documents: ", "validation documents: "],
    "number": ["number of training documents: 5, now 6"],
}


@pytest.mark.parametrize("change", DOCUMENTS)
def test_other_documents_are_refused(change, begun, tmp_path, steps, capsys):
    """Whether they are elsewhere or where they were."""
    books = write_corpus(tmp_path / "books", change)
    if change == "both":
        other = write_corpus(tmp_path / "more", "train")
        shutil.copy(write_corpus(tmp_path / "x", "validation") / "validation.jsonl", other)
        books = other
    if change == "number":
        with (books / "train.jsonl").open("a") as file:
            file.write('{"id": "another", "text": "more"}\n')
    words = DOCUMENTS[change]
    assert_refused(begun, tmp_path, capsys, WRONG_DATA, words, f"--gin.data.path={books}")
    assert steps.batches == {}


def progress(**changes: Any) -> dict[str, Any]:
    """What a checkpoint notes of the data."""
    fields = {"seed": 1, "documents": 2, "corpus": "0" * 64, "tokenizer": "bytes"} | changes
    validation = fields.pop("validation", "1" * 64)
    lanes = [None] * fields.pop("batch_size", 2)
    return {"lanes": fields | {"lanes": lanes, "epoch": 0}, "validation": validation}


def test_every_field_of_the_data_is_compared_and_named():
    changes = dict(zip(WHAT, (3, 4, "2" * 64, "words", 5, "4" * 64), strict=True))
    check_same_data(Path("run"), progress(), progress())
    for name, what in WHAT.items():
        with pytest.raises(DataError, match=f"\n  {what}: .*, now "):
            check_same_data(Path("run"), progress(), progress(**{name: changes[name]}))
    with pytest.raises(DataError) as caught:
        check_same_data(Path("run"), progress(), progress(**changes))
    assert all(f"\n  {what}: " in str(caught.value) for what in WHAT.values())


def test_another_vocabulary_is_refused(begun_with_vocabulary, tmp_path, steps, capsys):
    begun, other = begun_with_vocabulary, begun_with_vocabulary.inputs / "other.model"
    options = [f"--gin.{name}={value!r}" for name, value in vocabulary(other).items()]
    words = ["data.vocab_sha256 = "]
    assert_refused(begun, tmp_path, capsys, WRONG_CONFIG, words, *options)
    shutil.rmtree(tmp_path / "run")
    bytes_again = ["--gin.data.tokenizer=bytes", "--gin.data.vocab_path=None"]
    bytes_again += ["--gin.data.vocab_sha256=None"]
    words = ["data.tokenizer = 'sentencepiece', now 'bytes'"]
    assert_refused(begun, tmp_path, capsys, WRONG_CONFIG, words, *bytes_again)
    shutil.rmtree(tmp_path / "run")
    assert go_on(begun, tmp_path / "run", f"--gin.data.vocab_path={other}") == WRONG_DATA
    assert "other.model" in capsys.readouterr().err
    assert steps.batches == {}


def assert_the_same_batches(steps: Steps, begun: Begun) -> None:
    assert sorted(steps.batches) == list(range(STEPS + 1, MORE + 1))
    for step, batch in steps.batches.items():
        jax.tree.map(np.testing.assert_array_equal, batch, begun.batches[step])


PERMITTED = {
    "length": [],
    "rhythm": [
        "--gin.training.log_every=2",
        "--gin.training.checkpoint_every=5",
        "--gin.training.evaluate_every=4",
        "--gin.training.keep_checkpoints=1",
    ],
    "name": ["--gin.data.name=books"],
    "non_finite": ["--gin.training.non_finite=skip"],
}


@pytest.mark.parametrize("options", PERMITTED.values(), ids=PERMITTED)
def test_what_may_change_changes_no_batch(options, begun, tmp_path, steps):
    assert go_on(begun, tmp_path / "run", *options) == 0
    assert_the_same_batches(steps, begun)


def test_the_same_documents_elsewhere_change_no_batch(begun, tmp_path, steps):
    shutil.copytree(begun.inputs / "books", tmp_path / "moved")
    assert go_on(begun, tmp_path / "run", f"--gin.data.path={tmp_path / 'moved'}") == 0
    assert_the_same_batches(steps, begun)


def test_the_same_vocabulary_elsewhere_changes_no_batch(begun_with_vocabulary, tmp_path, steps):
    begun = begun_with_vocabulary
    shutil.copy(begun.inputs / "words.model", tmp_path / "moved.model")
    moved = f"--gin.data.vocab_path={tmp_path / 'moved.model'}"
    assert go_on(begun, tmp_path / "run", moved) == 0
    assert_the_same_batches(steps, begun)
