"""Laws of the checks: each argument is looked at once, at the public call that receives it."""

import jax.numpy as jnp
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.model import checks
from tests.helpers import MODELS, layer_config, random_model, random_tokens, randomize


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the arrays that are checked, in order."""
    names, check = [], checks.check_array

    def noting(name, *arguments):
        names.append(name)
        check(name, *arguments)

    monkeypatch.setattr(checks, "check_array", noting)
    return names


@pytest.mark.parametrize("name", ["slide", "fixed_dual", "feedback_lstm_skip"])
def test_a_model_looks_at_its_state_once(name, looked_at):
    model = random_model(MODELS[name])
    state = model.initial_state(2)
    model(random_tokens(2, 8), state, start_of_document=jnp.ones(2, bool))
    assert looked_at == [
        "keys of the state's cache",
        "values of the state's cache",
        "the recurrent state",
        "start_of_document",
    ]


def test_a_cell_looks_at_its_state_once(looked_at):
    cell = randomize(lambda rngs: br.RecurrentCell(layer_config(), rngs=rngs))
    cell(jnp.zeros((2, 4, 12)), cell.initial_state(2))
    assert looked_at == ["x", "keys of the cache", "values of the cache", "the recurrent state"]


def test_a_call_after_one_that_failed_is_checked_again():
    cell = randomize(lambda rngs: br.RecurrentCell(layer_config(), rngs=rngs))

    class Broken(Exception):
        pass

    def fail(x):
        raise Broken

    gate = br.FixedGate(5, 12, activation=fail, rngs=nnx.Rngs(0))
    with pytest.raises(Broken):
        gate(jnp.zeros((2, 12)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="a cell reads one block"):
        cell(jnp.zeros((2, 8, 12)), cell.initial_state(2))
