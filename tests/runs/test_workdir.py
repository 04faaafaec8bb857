"""Laws of work directories: one owner, one process, and no trace of a run that was refused."""

import json
import os
from pathlib import Path

import pytest

from block_recurrent import gin_files
from block_recurrent.config import ConfigError
from block_recurrent.runs import loop, reading, train
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import WorkdirInUse
from block_recurrent.runs.identity import check_claim
from block_recurrent.runs.workdir import locked
from block_recurrent.system.progress import ProgressLine
from experiments import evaluate, generate, table1, train_table
from experiments import train as program
from tests import quick_runs
from tests.quick_runs import STEPS, tree_of

WRONG_CONFIG = 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return quick_runs.make_inputs(tmp_path_factory.mktemp("inputs"))


def test_every_program_takes_what_a_script_has_trained(inputs, tmp_path, capsys):
    config, workdir = gin_files.load([inputs / "tiny.gin"]), tmp_path / "run"
    model, evaluation = train(config, workdir, line=ProgressLine(quiet=True))
    assert model.config == config.model
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    scored = json.loads((workdir / "evaluation_validation.json").read_text())
    assert (scored["step"], scored["nats"]) == (STEPS, evaluation.nats)
    (tmp_path / "prompt").write_text("the quick ")
    options = [f"--prompt_file={tmp_path / 'prompt'}", "--max_new_tokens=3"]
    assert generate.main([f"--workdir={workdir}", *options]) == 0
    run = reading.read_run(workdir)
    assert run.finished and run.config == config
    assert run.points[-1].evaluation == run.scored["validation"].evaluation == evaluation
    assert table1.main([str(workdir), f"--output={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    longer = "--gin.training.num_steps=7"
    assert program.main([f"--gin_file={inputs / 'tiny.gin'}", f"--workdir={workdir}", longer]) == 0
    assert f"continuing from step {STEPS}" in capsys.readouterr().err
    assert Checkpoints(workdir / "checkpoints").latest_step() == STEPS + 1


def test_a_lock_leaves_nothing_and_what_was_put_beside_it_stays(tmp_path):
    with locked(tmp_path / "a/b"):
        assert (tmp_path / "a/b/lock").read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/b/file").write_text("x")
    assert tree_of(tmp_path) == {"a": None, "a/b": None, "a/b/file": b"x"}


def test_a_lock_that_a_killed_process_left_is_taken_and_stays(tmp_path):
    (tmp_path / "lock").write_text("12345")
    with locked(tmp_path):
        pass
    assert tree_of(tmp_path) == {"lock": b""}


def test_a_work_directory_in_use_is_refused_and_stays_in_use(inputs, tmp_path, capsys):
    with locked(tmp_path / "run"):
        before = tree_of(tmp_path)
        assert quick_runs.run(inputs, tmp_path / "run") == 4
        words = f"another process ({os.getpid()}) is training in {tmp_path / 'run'}"
        assert words in capsys.readouterr().err
        with pytest.raises(WorkdirInUse), locked(tmp_path / "run"):
            pass
        assert tree_of(tmp_path) == before


def test_a_refused_run_leaves_no_trace(inputs, tmp_path, capsys):
    assert quick_runs.run(inputs, tmp_path / "a/run", "--gin.data.path=/no/books") == 3
    assert list(tmp_path.iterdir()) == []
    assert "/no/books" in capsys.readouterr().err


def impossible(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("mine")
    return {
        "it is a file": folder / "file",
        "it cannot be made (Not a directory)": folder / "file/below",
        "it cannot be made (No such file or directory)": Path("/proc/none/run"),
    }


@pytest.mark.parametrize("number", range(3))
def test_a_place_that_cannot_be_a_work_directory_is_named(
    number, inputs, tmp_path, capsys, monkeypatch
):
    why, workdir = list(impossible(tmp_path).items())[number]
    sentence = f"{workdir} cannot be a work directory, for {why}; choose another --workdir"
    before = tree_of(tmp_path)
    assert quick_runs.run(inputs, workdir) == WRONG_CONFIG
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")
    assert train_table.main([f"--workdir={workdir}"]) == WRONG_CONFIG
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")
    assert tree_of(tmp_path) == before
    with pytest.raises(ConfigError, match="choose another --workdir"):
        train(gin_files.load([inputs / "tiny.gin"]), workdir)


def test_the_configuration_is_looked_at_once(inputs, tmp_path, monkeypatch):

    seen = []
    monkeypatch.setattr(loop, "check_claim", lambda *words: seen.append(check_claim(*words)))
    assert quick_runs.run(inputs, tmp_path / "run") == 0
    assert len(seen) == 1
