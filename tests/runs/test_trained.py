"""Laws of reading a trained model: it is the one that was saved, with all that belongs to it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import block_recurrent as br
from block_recurrent import gin_files
from block_recurrent.config import ConfigError
from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints, read_parameters
from tests.helpers import assert_equal
from tests.quick_runs import STEPS, Steps, make_inputs, run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with checkpoints of steps 4 and 6, of which the last was evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        Steps(patch)
        assert run(make_inputs(folder), folder / "runs/rec") == 0
    return folder / "runs/rec"


def test_a_model_comes_with_its_configuration_and_tokenizer(workdir):
    model, config, tokenizer, step, progress = br.load(workdir)
    assert step == STEPS and progress["lanes"]
    assert config == gin_files.load([workdir / "config.gin"])
    assert_equal(named_parameters(model), read_parameters(workdir / "checkpoints"))
    assert tokenizer.decode(tokenizer.encode("a fox")) == "a fox"
    tokens = np.zeros((1, config.model.window), np.int32)
    logits, _ = model(tokens, model.initial_state(1), start_of_document=np.ones(1, bool))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("step, found", [(4, 4), ("best", 6), ("newest", 6), (None, 6)])
def test_any_checkpoint_is_read(step, found, workdir):
    trained = br.load(workdir, step)
    assert trained.step == found
    expected = read_parameters(workdir / "checkpoints", found)
    assert_equal(named_parameters(trained.model), expected)


def test_what_is_not_there_is_named(workdir, tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no run"):
        br.load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint 5 in .*: found 4, 6"):
        br.load(workdir, 5)
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "checkpoints/6/loss.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in .* has a validation loss"):
        br.load(copy, "best")


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(workdir, tmp_path, caplog):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "checkpoints/6/seal.json").write_text("{}")
    assert br.load(copy).step == 4
    assert "checkpoint 6 is damaged" in caplog.text and "seal.json" in caplog.text
    assert Checkpoints(copy / "checkpoints").steps() == [4, 6]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_documentation_works_as_shown(workdir, monkeypatch):
    """Also with Orbax alone."""
    code = "".join(blocks("runs.md")).replace("checkpoints/1000", "checkpoints/6")
    monkeypatch.chdir(workdir.parents[1])
    defined: dict = {}
    exec(code, defined)
    assert_equal(defined["parameters"], named_parameters(defined["model"]))
    assert defined["step"] == STEPS


def test_scoring_works_as_shown(workdir, monkeypatch, capsys):
    monkeypatch.chdir(workdir.parents[1])
    exec(blocks("scoring.md")[0], defined := {})
    assert defined["second"].bytes == 3
    assert capsys.readouterr().out.split()[1:] == [str(defined["second"].greedy), "3", "3"]


def test_the_harness_gets_what_it_asks_for(workdir):
    instance = pytest.importorskip("lm_eval.api.instance")
    exec("import block_recurrent as br\n" + blocks("scoring.md")[1], defined := {})
    model = defined["BlockRecurrentLM"](workdir)

    def ask(kind: str, *arguments):
        request = instance.Instance(kind, {}, arguments, 0)
        return getattr(model, kind)([request])[0]

    trained = br.load(workdir)
    pair, text = br.score(trained, [("the quick", " fox"), "the quick fox"])
    assert ask("loglikelihood", "the quick", " fox") == (pair.log_likelihood, pair.greedy)
    assert ask("loglikelihood_rolling", "the quick fox") == text.log_likelihood
    whole = ask("generate_until", "the quick", {"max_gen_toks": 9})
    stop = whole[2]
    until = {"until": [stop], "max_gen_toks": 9}
    assert ask("generate_until", "the quick", until) == whole.partition(stop)[0]
