"""Laws of saves that fail: they are reported, what was saved before stays, and three are enough."""

import contextlib
import functools
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from block_recurrent import gin_files
from block_recurrent.runs import checkpoints, loop, metrics
from block_recurrent.runs.checkpoints import Checkpoints, SaveFailed
from block_recurrent.system.files import reason
from block_recurrent.system.signals import StopRequest
from block_recurrent.training import TrainState
from tests import quick_runs
from tests.helpers import (
    assert_equal,
    files_limited_to,
    model_config,
    random_like,
    random_train_state,
)
from tests.quick_runs import logged_steps, run, tree_of, warnings_in

FILE_LIMIT = 100_000  # bytes; less than the arrays of the state below, more than anything else
FAILED = 4
LONG = "--gin.training.num_steps=20"


@functools.cache
def initial() -> TrainState:
    return random_train_state(model_config(num_layers=1, mlp_size=2000))


def trained(step: int) -> TrainState:
    return random_like(initial(), seed=step)._replace(step=jnp.int32(step))


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    with files_limited_to(FILE_LIMIT):
        yield


@contextlib.contextmanager
def a_file_in_place(directory: Path) -> Iterator[None]:
    """The directory is elsewhere, as where it cannot be written to, for root also."""
    moved = directory.rename(directory.with_name("moved"))
    directory.write_text("mine")
    yield
    directory.unlink()
    moved.rename(directory)


@contextlib.contextmanager
def a_name_taken(directory: Path) -> Iterator[None]:
    """A file has the name that the checkpoint is to have."""
    (directory / "3").write_text("mine")
    yield
    (directory / "3").unlink()


@contextlib.contextmanager
def its_parent_removed(directory: Path) -> Iterator[None]:
    """The whole work directory is gone, as where a disk is no longer mounted."""
    moved = directory.parent.rename(directory.parent.with_name("moved"))
    yield
    moved.rename(directory.parent)


OBSTACLES = {
    full_disk: "File too large",
    a_file_in_place: "File exists",
    a_name_taken: "File exists",
    its_parent_removed: "No such file",
}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "run").mkdir()
    store = Checkpoints(tmp_path / "run/checkpoints", keep=2)
    for step in (1, 2):
        store.save(trained(step), {"step": step})
        store.wait()
    yield store
    store.close()


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.__name__)
def test_a_save_that_fails_leaves_what_was_there(obstacle, store):
    before = tree_of(store.directory)
    with obstacle(store.directory):
        for _ in range(2):
            store.save(trained(3), {"step": 3})
            with pytest.raises(SaveFailed, match=f"step 3 could .*{OBSTACLES[obstacle]}") as caught:
                store.wait()
    seen = (
        "there is no checkpoint yet"
        if obstacle in (a_file_in_place, its_parent_removed)
        else "step 2"
    )
    assert str(caught.value).endswith(seen) and str(store.directory) in str(caught.value)
    assert tree_of(store.directory) == before and store.latest_step() == 2
    assert_equal(store.restore(initial())[0], trained(2))
    store.save(trained(3), {"step": 3})
    store.wait()
    assert store.steps() == [2, 3]
    assert_equal(store.restore(initial())[0], trained(3))


def test_the_next_save_removes_what_was_left_of_one_that_failed(store):
    (store.directory / "3.orbax-checkpoint-tmp/parameters").mkdir(parents=True)
    store.save(trained(4), {"step": 4})
    store.wait()
    assert {path.name for path in store.directory.iterdir()} == {"2", "4"}


def test_a_long_error_becomes_a_few_words():
    assert reason(OSError(28, "No space left on device", "file")) == "No space left on device"
    assert reason(ValueError("one\ntwo")) == "one" and reason(ValueError()) == "ValueError"
    assert len(reason(ValueError(500 * "x"))) < 350


def test_a_directory_removed_is_reported_and_made_again(store):
    warnings = []
    store._warn = warnings.append
    shutil.rmtree(store.directory)
    for step in (3, 4):
        store.save(trained(step), {"step": step})
        store.wait()
    assert warnings == [f"checkpoint 2 is no longer in {store.directory}"]
    assert store.steps() == [3, 4]


def test_a_loss_that_cannot_be_noted_is_reported_and_nothing_is_lost(store, monkeypatch):
    def refuse(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_whole", refuse)
    for step in (3, 4):
        store.save(trained(step), {"step": step})
        store.wait()
        store.save(trained(step), {"step": step}, loss=1.0)
        with pytest.raises(SaveFailed, match=f"step {step} was written.*loss.*No space left"):
            store.wait()
    assert store.steps() == [3, 4] and store.best_step() is None
    assert_equal(store.restore(initial())[0], trained(4))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return quick_runs.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def fails_at(monkeypatch):
    """Makes writing the checkpoints of steps fail, almost at its end."""
    write, failing = checkpoints.write_seal, set()

    def writing(folder, step):
        write(folder, step)
        if step in failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_seal", writing)
    return failing.update


def test_failures_are_reported_before_the_next_save(inputs, tmp_path, steps, fails_at, capsys):
    """They are due at 2, 4, ..."""
    reported = {}
    fails_at({4, 6})

    def look(step):
        reported[step] = warnings_in(capsys.readouterr().err)

    steps.at = {step: functools.partial(look, step) for step in (5, 7, 9, 10)}
    assert run(inputs, tmp_path / "run", "--gin.training.num_steps=10") == 0
    assert reported[5] == []
    (first,), (second,) = reported[7], reported[9]
    assert "step 4 could not be written" in first and "No space left on device" in first
    assert "step 6 could not" in second and second.endswith("the newest is that of step 2")
    assert reported[10] == []
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [8, 10]


def test_three_failures_in_a_row_end_the_run(inputs, tmp_path, steps, fails_at, capsys):
    workdir, seen = tmp_path / "run", {}
    fails_at({6, 8, 10})
    steps.at[11] = lambda: seen.update(tree_of(workdir / "checkpoints/4"))
    assert run(inputs, workdir, LONG) == FAILED
    errors = capsys.readouterr().err
    assert len(warnings_in(errors)) == 3 and "Traceback" not in errors
    message = errors.partition("error: ")[2]
    assert "step 10 could not be written" in message and "the newest is that of step 4" in message
    assert max(steps.batches) == 12
    assert Checkpoints(workdir / "checkpoints").steps() == [2, 4]
    assert seen and tree_of(workdir / "checkpoints/4") == seen


def test_two_failures_and_a_success_begin_the_count_anew(inputs, tmp_path, steps, fails_at, capsys):
    fails_at({4, 6, 10, 12})
    assert run(inputs, tmp_path / "run", LONG) == 0
    assert len(warnings_in(capsys.readouterr().err)) == 4


def test_a_save_that_fails_at_the_end_is_an_error(inputs, tmp_path, steps, fails_at, capsys):
    fails_at({6})
    assert run(inputs, tmp_path / "run") == FAILED
    message = capsys.readouterr().err.partition("error: ")[2]
    assert "step 6 could not be written" in message and "the newest is that of step 4" in message
    assert "failed" in (tmp_path / "run/summary.json").read_text()


def stop_at(step, steps, monkeypatch):
    """A signal comes within a step."""

    @contextlib.contextmanager
    def requested(**options):
        request = StopRequest()
        steps.at[step] = lambda: request.note(signal.SIGTERM)
        yield request

    monkeypatch.setattr(loop, "stop_on_signal", requested)


def test_a_save_that_fails_at_a_stop_is_an_error(
    inputs, tmp_path, steps, fails_at, capsys, monkeypatch
):
    stop_at(5, steps, monkeypatch)
    fails_at({5})
    assert run(inputs, tmp_path / "run") == FAILED
    message = capsys.readouterr().err.partition("error: ")[2]
    assert "step 5 could not be written" in message and "the newest is that of step 4" in message


def test_a_stop_saves_although_three_saves_have_failed(
    inputs, tmp_path, steps, fails_at, capsys, monkeypatch
):
    stop_at(7, steps, monkeypatch)
    fails_at({2, 4, 6})
    assert run(inputs, tmp_path / "run", LONG) == 128 + signal.SIGTERM
    assert len(warnings_in(capsys.readouterr().err)) == 3
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [0, 7]


def test_a_failed_save_does_not_hide_why_the_run_failed(inputs, tmp_path, steps, fails_at, capsys):
    def fail():
        raise MemoryError

    fails_at({4})
    steps.at[5] = fail
    assert run(inputs, tmp_path / "run") == 6
    errors = capsys.readouterr().err
    assert "step 4 could not be written" in warnings_in(errors)[0]
    assert "error: out of memory" in errors


def test_figures_are_tried_again_when_the_save_in_progress_has_ended(
    inputs, tmp_path, steps, monkeypatch
):
    append, room = metrics.MetricsFile._append, []

    def appending(file, text):
        if '"step": 5' in text and not room:
            room.append(Checkpoints(tmp_path / "run/checkpoints").latest_step())
            raise OSError(28, "No space left on device")
        append(file, text)

    monkeypatch.setattr(metrics.MetricsFile, "_append", appending)
    assert run(inputs, tmp_path / "run") == 0
    assert room and logged_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6, 6]


def test_failures_count_that_are_noticed_while_figures_are_written(
    inputs, tmp_path, steps, fails_at, monkeypatch, capsys
):
    append, tried = metrics.MetricsFile._append, set()

    def appending(file, text):
        step = json.loads(text)["step"]
        if step in (5, 7, 9) and step not in tried:
            tried.add(step)
            raise OSError(28, "No space left on device")
        append(file, text)

    monkeypatch.setattr(metrics.MetricsFile, "_append", appending)
    fails_at({4, 6, 8})
    assert run(inputs, tmp_path / "run", LONG) == FAILED
    errors = capsys.readouterr().err
    assert len(warnings_in(errors)) == 3 and "step 8 could not be" in errors.partition("error: ")[2]
    assert max(steps.batches) == 10


def test_a_run_that_cannot_begin_leaves_no_thread(inputs, tmp_path, steps, monkeypatch):
    config, claim = gin_files.load([inputs / "tiny.gin"]), loop.write_config

    def claiming(workdir, config):
        claim(workdir, config)
        (workdir / "metrics.jsonl").mkdir()

    monkeypatch.setattr(loop, "write_config", claiming)
    with pytest.raises(SaveFailed, match="figures of step 0 .*Is a directory"):
        loop.train(config, tmp_path)
    assert not [thread for thread in threading.enumerate() if "checkpoints" in thread.name]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [0]


def test_metrics_that_cannot_be_written_end_the_run(inputs, tmp_path, steps, capsys):
    workdir = tmp_path / "run"

    def obstruct():
        for name in ("metrics.jsonl", "summary.json"):
            (workdir / name).unlink(missing_ok=True)
            os.mkdir(workdir / name)

    steps.at[5] = obstruct
    assert run(inputs, workdir) == FAILED
    message = capsys.readouterr().err.partition("error: ")[2]
    assert "figures of step 5 could not be written" in message and "that of step 4" in message
