"""Laws of the loss, checked by NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from block_recurrent import LanguageModel
from block_recurrent.data import Batch
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.training.loss import cross_entropy, model_cross_entropy
from block_recurrent.training.step import segment_loss
from tests.helpers import assert_close, assert_equal, equations, model_config, random_model

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


WINDOWS, VOCABULARY_BY_WINDOW = 3, 101


def by_window(**changes) -> LanguageModel:
    config = model_config(0, num_layers=1, vocab_size=VOCABULARY_BY_WINDOW, **changes)
    return random_model(dataclasses.replace(config, logits_by_window=True))


def at_once(model: LanguageModel) -> LanguageModel:
    """The same parameters, with all logits of a segment at once."""
    config = dataclasses.replace(model.config, logits_by_window=False)
    return replace_parameters(random_model(config), named_parameters(model))


def segment(model: LanguageModel, masked: float = 0.2) -> tuple[Array, np.ndarray, np.ndarray]:
    """Features, targets and mask of three windows."""
    rng, config = np.random.default_rng(2), model.config
    shape = (4, WINDOWS * config.window)
    features = jnp.asarray(rng.normal(size=(*shape, config.model_size)), config.dtype)
    targets = rng.integers(config.vocab_size, size=shape).astype(np.int32)
    return features, targets, rng.random(shape) >= masked


def test_logits_by_window_are_all_logits_at_once_in_value_and_gradients():
    model = by_window()
    features, targets, mask = segment(model)

    def scaled(model, features):
        nats, count = model_cross_entropy(model, features, targets, mask)
        return 0.7 * nats, count

    loss = jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))
    (result, (of_model, of_features)) = loss(model, features)
    (expected, (of_other, of_other_features)) = loss(at_once(model), features)
    assert_close(result, expected, 1e-6)
    assert_close(named_parameters(of_model), named_parameters(of_other), 1e-6)
    assert_close(of_features, of_other_features, 1e-6)


def test_in_bfloat16_gradients_are_as_near_to_the_exact_ones_as_all_at_once():
    model = by_window(dtype="bfloat16")
    features, targets, mask = segment(model)

    def gradients(model, features):
        def nats(model, features):
            return model_cross_entropy(model, features, targets, mask)[0]

        of_model, of_features = jax.grad(nats, argnums=(0, 1))(model, features)
        return of_model.embedding[...], of_features

    rounded = model.embedding[...].astype("bfloat16").astype("float32")
    parameters = named_parameters(model) | {"embedding": rounded}
    exact = replace_parameters(by_window(), parameters)
    of_embedding, of_features = gradients(exact, features.astype("float32"))
    for other in (model, at_once(model)):
        result = gradients(other, features)
        assert [x.dtype for x in result] == [jnp.float32, jnp.bfloat16]
        assert_close(result[0], of_embedding, 2e-2)
        assert_close(result[1].astype("float32"), of_features, 2e-2)


def test_a_window_of_padding_alone_has_no_gradient():
    model = by_window()
    features, targets, mask = segment(model)
    mask[:, : model.config.window] = False
    loss = jax.grad(lambda x: model_cross_entropy(model, x, targets, mask)[0])
    gradient = loss(features)
    assert not jnp.any(gradient[:, : model.config.window])
    other = np.where(mask, targets, VOCABULARY_BY_WINDOW - 1 - targets)
    elsewhere = jax.grad(lambda x: model_cross_entropy(model, x, other, mask)[0])(features)
    assert_equal(elsewhere, gradient)


def test_a_step_of_training_is_the_same():
    model = by_window()
    tokens = np.random.default_rng(3).integers(VOCABULARY_BY_WINDOW, size=(2, 13)).astype(np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], tokens[:, 1:] > 9, np.zeros(2, bool))
    gradient = jax.jit(jax.value_and_grad(segment_loss, has_aux=True))
    carried = model.initial_state(2)
    (mean, (nats, targets, _)), of_model = gradient(model, carried, batch)
    (other_mean, other), of_other = gradient(at_once(model), carried, batch)
    assert_close((mean, nats, targets), (other_mean, *other[:2]), 1e-6)
    assert_close(named_parameters(of_model), named_parameters(of_other), 1e-6)


def traced(function, *arguments) -> tuple[int, int]:
    """The size of the largest array that a function computes, and how many products it has."""
    found = list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))
    largest = max(x.aval.size for equation in found for x in equation.outvars)
    return largest, sum(equation.primitive.name == "dot_general" for equation in found)


def test_no_array_is_as_large_as_the_logits_of_a_segment():
    model = by_window()
    features, targets, mask = segment(model)

    def nats(model, features):
        return model_cross_entropy(model, features, targets, mask)[0]

    whole = targets.size * VOCABULARY_BY_WINDOW
    gradient = jax.grad(nats, argnums=(0, 1))
    assert traced(nats, at_once(model), features) == (whole, 1)
    assert traced(gradient, at_once(model), features) == (whole, 3)
    assert traced(nats, model, features) == (whole // WINDOWS, 1)
    assert traced(gradient, model, features) == (whole // WINDOWS, 3)
