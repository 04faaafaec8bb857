"""Laws of the loss, checked by NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.training.loss import cross_entropy, model_cross_entropy
from tests.helpers import assert_close, assert_equal, model_config, random_model

RNG = np.random.default_rng(0)
BATCH, LENGTH, VOCABULARY = 2, 5, 7
TARGETS = RNG.integers(VOCABULARY, size=(BATCH, LENGTH)).astype(np.int32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)


def logits(scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(scale=scale, size=(BATCH, LENGTH, VOCABULARY)).astype(np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x.astype(np.float64) - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4])
def test_the_sum_of_minus_log_probabilities_and_their_number(scale):
    nats, count = cross_entropy(jnp.asarray(logits(scale)), TARGETS, MASK)
    of_targets = np.take_along_axis(log_softmax(logits(scale)), TARGETS[..., None], axis=-1)
    assert nats.dtype == jnp.float32 and count.dtype == jnp.int32
    np.testing.assert_allclose(nats, -np.sum(of_targets[..., 0][MASK]), rtol=1e-6)
    assert count == MASK.sum()


def test_masked_targets_have_no_effect():
    expected = cross_entropy(jnp.asarray(logits()), TARGETS, MASK)
    other_logits = np.where(MASK[..., None], logits(), 1e30).astype(np.float32)
    other_targets = np.where(MASK, TARGETS, VOCABULARY - 1 - TARGETS)
    assert_equal(cross_entropy(jnp.asarray(other_logits), other_targets, MASK), expected)
    assert_equal(cross_entropy(jnp.asarray(logits()), TARGETS, ~MASK | MASK)[1], MASK.size)


def test_nothing_counts_where_everything_is_masked():
    assert_equal(cross_entropy(jnp.asarray(logits()), TARGETS, np.zeros_like(MASK)), (0.0, 0))


def test_the_gradient_is_softmax_minus_the_target():
    gradient = jax.grad(lambda x: cross_entropy(x, TARGETS, MASK)[0])(jnp.asarray(logits()))
    expected = np.exp(log_softmax(logits())) - np.eye(VOCABULARY)[TARGETS]
    assert_close(gradient, expected * MASK[..., None], 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_by_the_window_are_all_logits_at_once(dtype):
    config = model_config(0, num_layers=1, vocab_size=101, dtype=dtype, logits_by_window=True)
    model, rng = random_model(config), np.random.default_rng(2)
    shape = (2, 3 * config.window)
    features = jnp.asarray(rng.normal(size=(*shape, config.model_size)), dtype)
    targets, mask = rng.integers(101, size=shape).astype(np.int32), rng.random(shape) < 0.8

    def by_window(model, features):
        return model_cross_entropy(model, features, targets, mask)

    def at_once(model, features):
        return cross_entropy(model.logits(features), targets, mask)

    results = [
        jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(model, features)
        for f in (by_window, at_once)
    ]
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    assert_close(*jax.tree.map(lambda x: x.astype("float32"), results), tolerance)
    sizes = [
        max(x.size for x in jax.tree.leaves(jax.eval_shape(partial_vjp(f), model, features)))
        for f in (by_window, at_once)
    ]
    assert sizes[0] < 101 * np.prod(shape) <= sizes[1]


def partial_vjp(f):
    """What the forward pass of f keeps for the backward pass."""
    return lambda *arguments: jax.vjp(f, *arguments)[1]
