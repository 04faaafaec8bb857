"""Laws of checkpoints: what comes back is what was saved, to the last bit."""

import functools

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.config import OptimizerConfig
from block_recurrent.parameters import named_parameters
from block_recurrent.training import TrainState, make_optimizer
from block_recurrent.training.checkpoints import CheckpointError, Checkpoints
from block_recurrent.training.step import initial_train_state
from helpers import assert_equal, model_config, random_like, random_model

CONFIGS = {
    "slide": model_config(num_layers=2),
    "recurrent": model_config(0, num_layers=2, gate="lstm", wiring="dual"),
    "bfloat16": model_config(0, num_layers=1, dtype="bfloat16"),
}
OPTIMIZERS = {
    "slide": OptimizerConfig(),
    "recurrent": OptimizerConfig(clip_norm=1.0),
    "bfloat16": OptimizerConfig(name="adamw", weight_decay=0.1),
}
POSITION = {"seed": 1, "epoch": 2, "lanes": [[3, 40], None], "corpus": "0123456789abcdef"}


@functools.cache
def initial(name: str = "slide") -> TrainState:
    model = random_model(CONFIGS[name])
    optimizer = make_optimizer(OPTIMIZERS[name], 10, model.stack.spans)
    return initial_train_state(model, optimizer, 2)


def trained(name: str = "slide", step: int = 5) -> TrainState:
    """A state no number of which is the initial one."""
    return random_like(initial(name), seed=step)._replace(step=jnp.int32(step))


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield checkpoints
    checkpoints.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_comes_back_bit_for_bit(name, checkpoints):
    state = trained(name)
    checkpoints.save(state, POSITION)
    restored, position = checkpoints.restore(initial(name))
    assert_equal(restored, state)
    assert position == POSITION
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    dtypes = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (restored, state)]
    assert dtypes[0] == dtypes[1]


def test_another_process_restores_the_newest(checkpoints, tmp_path):
    for step in (1, 2):
        checkpoints.save(trained(step=step), {"step": step})
    again = Checkpoints(tmp_path / "checkpoints")
    state, position = again.restore(initial())
    assert again.latest_step() == 2
    assert_equal(state, trained(step=2))
    assert position == {"step": 2}
    again.close()


def test_parameters_are_enough_for_a_model(checkpoints):
    state = trained("recurrent")
    checkpoints.save(state, POSITION)
    model = checkpoints.restore_parameters(initial("recurrent").model)
    assert_equal(named_parameters(model), named_parameters(state.model))


def test_only_the_newest_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 3, 10):
        checkpoints.save(trained(step=step), POSITION)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "10"}
    assert checkpoints.latest_step() == 10


def test_a_step_is_saved_once(checkpoints):
    checkpoints.save(trained(), POSITION)
    checkpoints.save(trained(), {"other": 1})
    assert checkpoints.restore(initial())[1] == POSITION


def test_where_nothing_is_saved_an_error_names_the_directory(checkpoints, tmp_path):
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/checkpoints"):
        checkpoints.restore(initial())
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoints.restore_parameters(initial().model)


def test_another_models_checkpoint_is_not_taken(checkpoints):
    checkpoints.save(trained("slide"), POSITION)
    with pytest.raises(ValueError):
        checkpoints.restore(initial("recurrent"))
    with pytest.raises(ValueError):
        checkpoints.restore_parameters(initial("recurrent").model)
