"""Laws of reading a trained model: it is the one that was saved, with all that belongs to it."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent import gin_files
from block_recurrent.config import ConfigError
from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints, read_parameters
from block_recurrent.runs.errors import SaveFailed
from block_recurrent.runs.exported import CHECKSUM, PROGRESS, STEP, _checksum, _read
from experiments import export
from tests.helpers import assert_equal, files_limited_to
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


@pytest.fixture(scope="module")
def exported(workdir):
    """The model of step 4 in a file."""
    pytest.importorskip("safetensors")
    file = workdir / "rec.safetensors"
    assert export.main([f"--workdir={workdir}", "--checkpoint=4", f"--output={file}"]) == 0
    return file


def test_an_exported_model_is_the_one_of_the_work_directory(workdir, exported):
    expected, found = br.load(workdir, 4), br.load_safetensors(exported)
    assert_equal(named_parameters(found.model), named_parameters(expected.model))
    assert found[1:2] + found[3:] == expected[1:2] + expected[3:]
    assert found.tokenizer.name == expected.tokenizer.name
    tokens, state = jnp.ones((1, 8), jnp.int32), expected.model.initial_state(1)
    logits = jax.jit(lambda model: model(tokens, state)[0])
    assert_equal(logits(found.model), logits(expected.model))


def test_an_export_keeps_dtypes_and_other_programs_read_it_by_name(workdir, tmp_path):
    flax, trained = pytest.importorskip("safetensors.flax"), br.load(workdir)
    half = jax.tree.map(lambda array: array.astype(jnp.bfloat16), trained.model)
    br.save_safetensors(trained._replace(model=half), tmp_path / "half.safetensors")
    found = br.load_safetensors(tmp_path / "half.safetensors").model
    assert_equal(named_parameters(found), named_parameters(half))
    assert {array.dtype for array in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    assert_equal(flax.load_file(tmp_path / "half.safetensors"), named_parameters(half))


@pytest.mark.parametrize("changed", [{STEP: "x"}, {PROGRESS: "[" * 100_000}])
def test_an_export_made_to_hurt_is_refused(changed, exported, tmp_path):
    """Its checksum is right."""
    numpy, file = pytest.importorskip("safetensors.numpy"), tmp_path / "made.safetensors"
    metadata, arrays = _read(exported)
    metadata |= changed
    numpy.save_file(arrays, file, metadata | {CHECKSUM: _checksum(metadata, arrays)})
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        br.load_safetensors(file)


def test_a_damaged_or_foreign_export_is_one_error(workdir, exported, tmp_path):
    numpy, file = pytest.importorskip("safetensors.numpy"), tmp_path / "other.safetensors"
    whole = exported.read_bytes()
    for place in (3, 9, len(whole) // 2, -1):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"{file} (cannot be read|is damaged)"):
            br.load_safetensors(file)
    for content in (b"", whole[:-1], whole + b"0", whole.replace(b"model.window", b"model.wimdow")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file} (cannot be read|is damaged)"):
            br.load_safetensors(file)
    numpy.save_file({"kernel": np.zeros(3, np.float32)}, file)
    with pytest.raises(CheckpointError, match="was not written by block-recurrent export"):
        br.load_safetensors(file)
    with pytest.raises(CheckpointError, match="cannot be read .*[Nn]o such file"):
        br.load_safetensors(tmp_path / "nothing.safetensors")
    config = gin_files.load([workdir / "config.gin"], ["model.num_states=5"])
    with pytest.raises(CheckpointError, match="misshapen: .* is .3, 8., but .5, 8. is needed"):
        br.load_safetensors(exported, config=config)


def test_an_export_that_fails_leaves_the_file_before(workdir, exported):
    before, names = exported.read_bytes(), sorted(exported.parent.iterdir())
    with files_limited_to(1000), pytest.raises(SaveFailed, match=f"{exported} cannot be written"):
        br.save_safetensors(br.load(workdir), exported)
    assert exported.read_bytes() == before
    assert sorted(exported.parent.iterdir()) == names


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_documentation_works_as_shown(workdir, monkeypatch):
    """Also with Orbax alone."""
    code = "".join(blocks("runs.md")).replace("checkpoints/600", "checkpoints/6")
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
