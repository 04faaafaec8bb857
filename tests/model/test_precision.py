"""Laws of bfloat16: activations alone are rounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.model.parameters import named_parameters
from tests.helpers import (
    MODELS,
    assert_close,
    random_like,
    random_model,
    random_tokens,
    read,
    read_with_gradients,
)

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def prepare(name):
    model = random_model(MODELS[name])
    low = random_model(dataclasses.replace(MODELS[name], dtype="bfloat16"))
    state = random_like(model.initial_state(2))
    low_state = jax.tree.map(lambda x, y: x.astype(y.dtype), state, low.initial_state(2))
    return model, state, low, low_state


def test_parameters_states_gradients_and_logits_stay_float32():
    model, state, low, low_state = prepare("fixed_single")
    tokens = random_tokens(2, 12)
    logits, _ = read(model, tokens, state)
    _, (low_logits, after), (gradients, carried) = read_with_gradients(low, tokens, low_state)
    assert dtypes((low, low_logits, gradients)) == {FLOAT32}
    assert after.recurrent.dtype == carried.recurrent.dtype == FLOAT32
    assert dtypes(after.cache) == {BFLOAT16}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert 1e-4 < np.std(low_logits - logits) / np.std(logits) < 3e-2


@pytest.mark.parametrize("name", ["lstm_dual", "feedback_fixed_single"])
def test_no_gradient_of_a_kernel_is_rounded_to_bfloat16(name):
    """Devices add up their parts of a gradient as they are: in float32."""
    _, _, low, state = prepare(name)
    start = jnp.array([True, False])
    *_, (gradients, _) = read_with_gradients(low, random_tokens(2, 12), state, start)
    kernels = {p: x for p, x in named_parameters(gradients).items() if p.endswith("kernel")}
    rounded = {p: np.mean(x == x.astype(BFLOAT16).astype(FLOAT32)) for p, x in kernels.items()}
    assert rounded and max(rounded.values()) < 0.2, rounded


def test_feedback_in_bfloat16_is_near_float32():
    model, state, low, low_state = prepare("feedback_fixed_single")
    tokens = random_tokens(2, 12)
    logits, after = read(model, tokens, state)
    low_logits, low_after = read(low, tokens, low_state)
    assert 1e-4 < np.std(low_logits - logits) / np.std(logits) < 3e-2
    assert dtypes(low_after.recurrent) == {FLOAT32}
    assert_close(low_after.recurrent, after.recurrent, 3e-2)


def test_the_recurrent_state_is_never_rounded():
    _, _, low, state = prepare("feedback_fixed_single")
    low = jax.tree.map(lambda x: x, low)
    for cell in low.stack.cells:
        cell.wiring.gate.bias[...] = jnp.full(12, 100.0)
    _, after = read(low, random_tokens(2, 12), state)
    np.testing.assert_array_equal(after.recurrent, state.recurrent)
