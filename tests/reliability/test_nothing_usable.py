"""Laws of a start that cannot go on: it says what was found, changes nothing, never begins anew."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import evaluate, train
from tests import quick_runs
from tests.quick_runs import SAVED, STEPS, Steps, checkpoint, logged_steps, run, tree_of

WRONG_CONFIG, WRONG_CHECKPOINTS = 2, 4
LIMIT = 300  # seconds, on a busy machine; alone it takes 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus, its configuration, and a run that has ended, `finished`."""
    folder = quick_runs.make_inputs(tmp_path_factory.mktemp("inputs"))
    with pytest.MonkeyPatch.context() as patch:
        Steps(patch)
        assert run(folder, folder / "finished") == 0
    return folder


def checkpoints_become(pattern: str):
    def change(workdir: Path) -> None:
        for step in SAVED:
            folder = checkpoint(workdir, step)
            folder.rename(folder.with_name(pattern.format(step)))

    return change


def damage_all(workdir: Path) -> None:
    for step in SAVED:
        path = checkpoint(workdir, step) / "seal.json"
        path.write_bytes(path.read_bytes()[:-1])


def half_remove(workdir: Path) -> None:
    for step in SAVED:
        (checkpoint(workdir, step) / "parameters/manifest.ocdbt").unlink()


def foreign_checkpoints(workdir: Path) -> None:
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints/backup").mkdir(parents=True)
    (workdir / "checkpoints/notes.txt").write_text("mine")
    (workdir / "metrics.jsonl").unlink()


def a_file_for_checkpoints(workdir: Path) -> None:
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("mine")
    (workdir / "metrics.jsonl").unlink()


def foreign_files(workdir: Path) -> None:
    shutil.rmtree(workdir)
    workdir.mkdir()
    for name in ("thesis.tex", "photos.zip"):
        (workdir / name).write_text("mine")


def a_file_for_the_directory(workdir: Path) -> None:
    shutil.rmtree(workdir)
    workdir.write_text("mine")


def another_models_checkpoints(workdir: Path) -> None:
    quick_runs.write_gin(workdir / "config.gin", {"data.path": str(workdir.parent / "books")})
    text = (workdir / "config.gin").read_text()
    (workdir / "config.gin").write_text(text.replace("mlp_size = 8", "mlp_size = 24"))


def config_becomes(change):
    def rewrite(workdir: Path) -> None:
        path = workdir / "config.gin"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


AFRESH = "choose another "
DAMAGES = {
    "only temporaries": (
        checkpoints_become("{}.orbax-checkpoint-tmp"),
        WRONG_CHECKPOINTS,
        ["4.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp", "not new"],
    ),
    "only half-removed ones": (
        half_remove,
        WRONG_CHECKPOINTS,
        ["6/parameters/manifest.ocdbt is missing", "damaged", "Nothing was changed"],
    ),
    "only damaged ones set aside": (
        checkpoints_become("damaged-{}"),
        WRONG_CHECKPOINTS,
        ["damaged-6", "not new"],
    ),
    "all damaged": (
        damage_all,
        WRONG_CHECKPOINTS,
        ["4/seal.json", "6/seal.json", "damaged", "Nothing was changed"],
    ),
    "checkpoints deleted": (
        lambda workdir: shutil.rmtree(workdir / "checkpoints"),
        WRONG_CHECKPOINTS,
        ["metrics.jsonl", "not new"],
    ),
    "foreign files among the checkpoints": (
        foreign_checkpoints,
        WRONG_CHECKPOINTS,
        ["backup", "notes.txt"],
    ),
    "a file in place of checkpoints": (
        a_file_for_checkpoints,
        WRONG_CHECKPOINTS,
        ["checkpoints, a file"],
    ),
    "foreign files": (foreign_files, WRONG_CONFIG, ["no config.gin", "photos.zip, thesis.tex"]),
    "a file in place of the directory": (a_file_for_the_directory, WRONG_CONFIG, ["it is a file"]),
    "configuration deleted": (
        lambda workdir: (workdir / "config.gin").unlink(),
        WRONG_CONFIG,
        ["no config.gin", "checkpoints"],
    ),
    "configuration emptied": (config_becomes(lambda text: b""), WRONG_CONFIG, ["is damaged"]),
    "configuration cut": (
        config_becomes(lambda text: text[: text.index(b"head_size") + 5]),
        WRONG_CONFIG,
        ["is damaged"],
    ),
    "configuration not text": (
        config_becomes(lambda text: b"\xff" + text),
        WRONG_CONFIG,
        ["UTF-8"],
    ),
}


@pytest.mark.parametrize("damage, status, words", DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_go_on_stops_and_changes_nothing(
    damage, status, words, inputs, tmp_path, steps, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    damage(workdir)
    before = tree_of(tmp_path)
    assert run(inputs, workdir, f"--gin.training.num_steps={STEPS + 4}") == status
    message = capsys.readouterr().err.partition("error: ")[2]
    assert all(word in message for word in [*words, str(workdir), AFRESH]), message
    assert "Traceback" not in message
    assert tree_of(tmp_path) == before
    assert steps.batches == {}


def test_nor_does_a_run_whose_figures_are_damaged(inputs, tmp_path, steps, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    path = workdir / "metrics.jsonl"
    path.write_bytes(b"\0" + path.read_bytes())
    before = tree_of(tmp_path)
    assert run(inputs, workdir, f"--gin.training.num_steps={STEPS + 4}") == WRONG_CHECKPOINTS
    assert f"{path}:1: not JSON" in capsys.readouterr().err
    assert tree_of(tmp_path) == before and steps.batches == {}


OTHERS = {
    "another configuration": ([], ["mlp_size = 8, now 24"], WRONG_CONFIG),
    "another model under this configuration": (
        [another_models_checkpoints],
        ["another model", "in the checkpoint"],
        WRONG_CHECKPOINTS,
    ),
}


@pytest.mark.parametrize("damages, words, status", OTHERS.values(), ids=OTHERS)
def test_another_models_work_directory_is_left_alone(
    damages, words, status, inputs, tmp_path, steps, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    shutil.copytree(inputs / "books", tmp_path / "books")
    for damage in damages:
        damage(workdir)
    before = tree_of(tmp_path)
    assert run(inputs, workdir, "--gin.model.mlp_size=24") == status
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert tree_of(tmp_path) == before and steps.batches == {}


@pytest.mark.parametrize("damage", ["only temporaries", "all damaged", "checkpoints deleted"])
def test_nor_is_there_anything_to_evaluate(damage, inputs, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    DAMAGES[damage][0](workdir)
    before = tree_of(tmp_path)
    assert evaluate.main([f"--workdir={workdir}"]) == WRONG_CHECKPOINTS
    assert str(workdir / "checkpoints") in capsys.readouterr().err
    assert tree_of(tmp_path) == before


def test_a_program_that_cannot_go_on_says_so_quickly(inputs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    damage_all(workdir)
    before = tree_of(tmp_path)
    command = [sys.executable, train.__file__]
    arguments = [f"--gin_file={inputs / 'tiny.gin'}", f"--workdir={workdir}"]
    ended = subprocess.run(
        [*command, *arguments], timeout=LIMIT, capture_output=True, env=os.environ
    )
    assert ended.returncode == WRONG_CHECKPOINTS
    errors = ended.stderr.decode()
    assert "all checkpoints in" in errors and "Traceback" not in errors
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("logged", [0, 3])
def test_a_run_killed_before_its_first_checkpoint_begins_again(logged, inputs, tmp_path, steps):
    """Its first steps may have been logged meanwhile: the checkpoint is written behind them."""
    workdir = tmp_path / "run"
    saving = workdir / "checkpoints/0.orbax-checkpoint-tmp"
    saving.mkdir(parents=True)
    (saving / "half").write_bytes(b"half")
    shutil.copy(inputs / "finished/config.gin", workdir)
    lines = (inputs / "finished/metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:logged]))
    assert run(inputs, workdir) == 0
    assert min(steps.batches) == 1 and max(steps.batches) == STEPS
    assert logged_steps(workdir) == logged_steps(inputs / "finished")
    assert list((workdir / "checkpoints").glob("*-tmp")) == []


def test_an_empty_directory_is_new(inputs, tmp_path, steps):
    assert run(inputs, tmp_path) == 0
    assert sorted(steps.batches) == list(range(1, STEPS + 1))


def test_foreign_files_beside_checkpoints_do_no_harm(inputs, tmp_path, steps):
    workdir = tmp_path / "run"
    shutil.copytree(inputs / "finished", workdir)
    for name in ("notes.txt", "checkpoints/notes.txt", "checkpoints/9"):
        (workdir / name).write_text("mine")
    (workdir / "checkpoints/old").mkdir()
    assert run(inputs, workdir, f"--gin.training.num_steps={STEPS + 2}") == 0
    assert sorted(steps.batches) == [STEPS + 1, STEPS + 2]
    assert (workdir / "checkpoints/9").read_text() == "mine"
