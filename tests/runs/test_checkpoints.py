"""Laws of checkpoints: what comes back is what was saved, to the last bit."""

import functools
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.config import AdafactorConfig, AdamWConfig
from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs import checkpoint_folder, checkpoints
from block_recurrent.runs.checkpoints import (
    CheckpointError,
    Checkpoints,
    SaveFailed,
    read_parameters,
)
from block_recurrent.system.digests import seal
from block_recurrent.training import TrainState
from tests.helpers import assert_equal, model_config, random_like, random_train_state

CONFIGS = {
    "slide": model_config(num_layers=2),
    "recurrent": model_config(0, num_layers=2, gate="lstm", wiring="dual"),
    "bfloat16": model_config(0, num_layers=1, dtype="bfloat16"),
}
OPTIMIZERS = {
    "slide": AdafactorConfig(),
    "recurrent": AdafactorConfig(clip_norm=1.0),
    "bfloat16": AdamWConfig(weight_decay=0.1),
}
POSITION = {"seed": 1, "epoch": 2, "lanes": [[3, 40], None], "corpus": "0123456789abcdef"}
STEPS = (1, 2, 3, 10)


@functools.cache
def initial(name: str = "slide") -> TrainState:
    return random_train_state(CONFIGS[name], OPTIMIZERS[name])


def trained(name: str = "slide", step: int = 5) -> TrainState:
    """A state no number of which is the initial one."""
    return random_like(initial(name), seed=step)._replace(step=jnp.int32(step))


@pytest.fixture
def store(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield store
    store.close()


def save(store, *steps, loss=None, name="slide"):
    """Saves the states of steps, and waits."""
    for step in steps:
        store.save(trained(name, step), POSITION, loss=loss)
        store.wait()


def restore_model(store, like=None, step=None):
    """The step and the model in a checkpoint, the newest unless given."""
    model = (like or initial()).model
    found, (model, _) = store.read(lambda path: checkpoint_folder.read_model(path, model), step)
    return found, model


def names(store) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_comes_back_bit_for_bit(name, store):
    state = trained(name)
    save(store, 5, name=name)
    restored, position = store.restore(initial(name))
    assert_equal(restored, state)
    assert position == POSITION
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    dtypes = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (restored, state)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_enough_to_restore(name, store):
    save(store, 5, name=name)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), initial(name))
    restored, _ = store.restore(shapes)
    assert_equal(restored, trained(name))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    step, model = restore_model(store, shapes)
    assert step == 5
    assert_equal(model, trained(name).model)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_read_with_a_model_and_without(name, store):
    expected = named_parameters(trained(name).model)
    save(store, 5, name=name)
    step, model = restore_model(store, initial(name))
    arrays = read_parameters(store.directory)
    assert step == 5 and {type(array) for array in arrays.values()} == {np.ndarray}
    for found in (named_parameters(model), arrays):
        assert_equal(found, expected)
        assert [x.dtype for x in found.values()] == [x.dtype for x in expected.values()]


def test_parameters_of_any_step_are_read(store):
    save(store, 1, 2)
    assert_equal(read_parameters(store.directory, 1), named_parameters(trained(step=1).model))
    step, model = restore_model(store, step=1)
    assert step == 1
    assert_equal(model, trained(step=1).model)
    with pytest.raises(CheckpointError, match="no checkpoint 3 in .*: found 1, 2"):
        read_parameters(store.directory, 3)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        read_parameters(store.directory / "none")


def test_what_becomes_of_a_state_while_it_is_saved_does_not_matter(store, monkeypatch):
    begin, write, state = threading.Event(), checkpoints.write_seal, trained()
    monkeypatch.setattr(checkpoints, "write_seal", lambda *all: begin.wait(60) and write(*all))
    add = jax.jit(lambda x: x + x.dtype.type(1), donate_argnums=0)
    progress = {"position": 1}

    def overwritten(leaf):
        """The leaf plus four, in its memory, which JAX gives away when Orbax has read it."""
        following = leaf
        while leaf.size and not leaf.is_deleted():
            following = add(leaf)
        for _ in range(3):
            following = add(following)

    store.save(state, progress)
    progress["position"] = 2
    jax.tree.map(overwritten, state)
    begin.set()
    store.wait()
    restored, position = store.restore(initial())
    assert_equal(restored, trained())
    assert position == {"position": 1}


def test_a_checkpoint_is_seen_when_it_is_whole_and_not_before(store, monkeypatch):
    seen, write = [], checkpoints.write_seal

    def writing(*arguments):
        write(*arguments)
        seen.append(store.steps())

    monkeypatch.setattr(checkpoints, "write_seal", writing)
    save(store, 5)
    assert seen == [[]] and store.steps() == [5] and names(store) == {"5"}


def test_another_store_in_the_directory_restores_the_newest(store, tmp_path):
    other = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        save(store, step)
        state, _ = other.restore(initial())
        assert other.latest_step() == step
        assert_equal(state, trained(step=step))
    other.close()


def test_what_another_process_removes_meanwhile_is_not_damaged(store, tmp_path, monkeypatch):
    warnings, read = [], checkpoint_folder.read_model
    other = Checkpoints(tmp_path / "checkpoints", warn=warnings.append)
    save(store, 1, 2)

    def reading(folder, *arguments):
        if folder.name == "2":
            save(store, 3, 4)  # which removes 1 and 2
        return read(folder, *arguments)

    monkeypatch.setattr(checkpoint_folder, "read_model", reading)
    step, model = restore_model(other)
    assert step == 4 and warnings == []
    assert_equal(named_parameters(model), named_parameters(trained(step=4).model))


def test_only_the_newest_are_kept(store):
    save(store, *STEPS)
    assert names(store) == {"3", "10"}
    assert store.latest_step() == 10 and store.best_step() is None


@pytest.mark.parametrize("best", STEPS)
def test_the_best_is_kept_besides_the_newest(best, store):
    for step in STEPS:
        save(store, step)
        save(store, step, loss=1.0 if step == best else 2.0 + step)
    assert store.best_step() == best
    assert names(store) == {str(best), "3", "10"}
    assert Checkpoints(store.directory).best_step() == best


def test_a_loss_that_is_no_number_is_not_the_best(store):
    save(store, 1, loss=float("nan"))
    assert store.best_step() is None
    save(store, 2, loss=3.0)
    save(store, 3, loss=float("nan"))
    assert store.best_step() == 2


@pytest.mark.parametrize("damage", [b"", b"{}", None, seal("x").encode(), b"\xff"])
def test_a_loss_that_is_damaged_is_not_the_best(damage, store):
    warnings = []
    store._warn = warnings.append
    save(store, 1, loss=2.5)
    save(store, 2, loss=3.5)
    path = store.directory / "1/loss.json"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert store.best_step() == 2
    assert all("loss of checkpoint 1 is not known" in warning for warning in warnings)
    assert bool(warnings) == (damage is not None)
    save(store, 3, 4)
    assert store.steps() == [2, 3, 4]
    assert_equal(restore_model(store, step=2)[1], trained(step=2).model)


def test_a_step_is_saved_once(store):
    save(store, 5)
    store.save(trained(), {"other": 1})
    assert store.restore(initial())[1] == POSITION


def test_a_damaged_step_is_saved_again(store):
    save(store, 1, 2)
    (store.directory / "2/seal.json").write_text("{}")
    store.restore(initial())
    store.save(trained(step=2), {"again": 1})
    store.wait()
    assert store.restore(initial())[1] == {"again": 1}
    assert names(store) == {"1", "2", "damaged-2"}


def test_other_names_are_no_steps(store):
    save(store, 3)
    for name in (
        "tmp",
        "007",
        "-1",
        "1.5",
        "9_9",
        "٣",
        "²",
        "3.bak",
        "4.orbax-checkpoint-tmp",
        "damaged-5",
    ):
        (store.directory / name).mkdir()
    (store.directory / "8").write_text("a file")
    assert store.steps() == [3] and store.latest_step() == 3


def test_what_is_half_written_is_removed_by_tidying_only(store):
    save(store, 3)
    (store.directory / "4.orbax-checkpoint-tmp/parameters").mkdir(parents=True)
    store.restore(initial())
    restore_model(store)
    assert names(store) == {"3", "4.orbax-checkpoint-tmp"}
    store.tidy()
    assert names(store) == {"3"}


def test_a_download_is_abandoned_after_an_hour(store):
    save(store, 3)
    for name, age in (("new", 60), ("old", 4000)):
        folder = store.directory / f".fetching-2-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    store.tidy()
    assert names(store) == {"3", ".fetching-2-new"}


def test_where_nothing_is_saved_an_error_names_the_directory(store, tmp_path):
    assert store.latest_step() is None
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/checkpoints"):
        store.restore(initial())
    with pytest.raises(CheckpointError, match="no checkpoint"):
        restore_model(store)


def test_another_models_checkpoint_is_not_taken(store):
    save(store, 5)
    with pytest.raises(CheckpointError, match="another model"):
        store.restore(initial("recurrent"))
    with pytest.raises(CheckpointError, match="another model(.|\n)*nothing in the checkpoint"):
        restore_model(store, initial("recurrent"))
    assert names(store) == {"5"}


def test_a_checkpoint_under_another_steps_name_is_not_taken(store):
    save(store, 1)
    shutil.copytree(store.directory / "1", store.directory / "2")
    with pytest.raises(CheckpointError, match="seal.json belongs to checkpoint 1"):
        read_parameters(store.directory, 2)
    assert int(store.restore(initial())[0].step) == 1


def test_want_of_memory_is_no_damage(store, monkeypatch):
    def exhausted(*arguments, **options):
        raise MemoryError("12 GB")

    save(store, 1, 2)
    monkeypatch.setattr(checkpoint_folder.ocp, "load_checkpointables", exhausted)
    with pytest.raises(MemoryError):
        store.restore(initial())
    store.tidy()
    assert store.steps() == [1, 2]


def test_a_save_that_failed_is_reported_once_by_the_next_call(store, monkeypatch):
    def refused(*arguments):
        raise RuntimeError("no\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_seal", refused)
        store.save(trained(), POSITION)
        with pytest.raises(SaveFailed, match=r"step 5 .*\(no\); there is no checkpoint yet"):
            store.save(trained(step=6), POSITION)
    store.wait()
    assert store.steps() == [] and names(store) == set()


def test_what_a_killed_process_left_is_no_part_of_the_next_checkpoint(store):
    save(store, 1)
    left = store.directory / "2.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    save(store, 2)
    assert store.steps() == [1, 2] and names(store) == {"1", "2"}
    assert_equal(store.restore(initial())[0], trained(step=2))
