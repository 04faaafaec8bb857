"""Laws of the loss, checked by NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.training.loss import cross_entropy
from helpers import assert_close, assert_equal

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
