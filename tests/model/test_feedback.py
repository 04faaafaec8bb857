"""Laws of feedback: who reads which state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import MODELS, random_like, random_model, random_tokens, read

WINDOW = 4

# Layers whose input, in the first block, depends on the state of each recurrent layer.
REACHED = {
    "fixed_single": [{1, 2}],
    "fixed_dual": [{1, 2}, set()],
    "feedback_fixed_skip": [{1, 2}],
    "feedback_fixed_single": [{1, 2}, {2}],
}


@pytest.mark.parametrize("name", REACHED)
def test_with_feedback_plain_layers_read_the_last_recurrent_state(name):
    model = random_model(MODELS[name])
    tokens, state = random_tokens(2, WINDOW), random_like(model.initial_state(2))
    _, expected = read(model, tokens, state)
    for index, reached in enumerate(REACHED[name]):
        recurrent = state.recurrent.at[index].add(1.0)
        _, after = read(model, tokens, state._replace(recurrent=recurrent))
        differs = np.any(after.cache.values != expected.cache.values, axis=(1, 2, 3, 4))
        assert set(np.flatnonzero(differs).tolist()) == reached


def test_states_are_read_before_their_update():
    """With a gate that lets nothing in or out, every block reads the state of the beginning."""
    model = random_model(MODELS["feedback_fixed_skip"])
    kept = jax.tree.map(lambda x: x, model)
    kept.stack.cells[0].wiring.gate.bias[...] = jnp.full(12, 100.0)
    tokens, state = random_tokens(2, 12), random_like(model.initial_state(2))
    (logits, _), (frozen, after) = read(model, tokens, state), read(kept, tokens, state)
    np.testing.assert_array_equal(after.recurrent, state.recurrent)
    np.testing.assert_array_equal(frozen[:, :WINDOW], logits[:, :WINDOW])
    assert np.any(frozen[:, WINDOW:] != logits[:, WINDOW:])
