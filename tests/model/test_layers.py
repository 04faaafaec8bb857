"""Laws of the small layers: norm, dense layers, heads and dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from block_recurrent.model import layers
from block_recurrent.model.layers import (
    RMSNorm,
    apply_dense,
    dense,
    l2_normalize,
    product,
    project_to_heads,
    relu,
    split_heads,
)
from tests import reference
from tests.helpers import (
    MODELS,
    assert_close,
    assert_equal,
    equations,
    random_like,
    random_model,
    random_tokens,
    randomize,
    read,
)

X = random_like(jnp.zeros((2, 12, 6)))


def test_norm_has_no_mean_and_no_bias():
    norm = randomize(lambda rngs: RMSNorm(6))
    assert_close(norm(X), reference.rms(np.asarray(X), np.asarray(norm.scale[...])))
    assert norm(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(norm(jnp.zeros((1, 6))))


X = random_like(jnp.zeros((2, 12, 6)))


def test_dense_layers_together_are_each_alone():
    layers = [randomize(lambda rngs, size=size: dense(6, size, rngs=rngs)) for size in (3, 1, 5)]
    assert_close(apply_dense(X, *layers, shared=None), [X @ layer.kernel[...] for layer in layers])
    (low,) = apply_dense(X.astype(jnp.bfloat16), layers[0], shared=None)
    assert low.dtype == jnp.bfloat16


def test_a_relu_and_its_gradient_are_those_of_plain_jax():
    x = jnp.concatenate([X, jnp.zeros_like(X)])

    def gradient(function):
        return jax.grad(lambda x: jnp.sum(jnp.sin(function(x) + 1)))(x)

    assert_close((relu(x), gradient(relu)), (jax.nn.relu(x), gradient(jax.nn.relu)), 0)


@pytest.mark.parametrize("size", [3, 6, 11])
def test_gradients_of_a_product_are_those_of_plain_jax(size):
    kernel, weights = random_like([jnp.zeros((6, size)), jnp.zeros((2, 12, size))])

    def gradients(multiply):
        return jax.grad(lambda x, kernel: jnp.sum(multiply(x, kernel) * weights), (0, 1))(X, kernel)

    assert_close(gradients(lambda x, kernel: product(x, kernel, None)), gradients(jnp.matmul))


def test_the_gradient_of_a_kernel_is_turned_round_for_cpus_alone():
    gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(product(X, kernel, None))))
    traced = gradient.trace(jnp.zeros((6, 3)))
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) == (platform == "cpu")


X = random_like(jnp.zeros((2, 12, 6)))


def test_l2_normalised_vectors_have_the_given_length():
    assert_close(l2_normalize(X), reference.l2_normalise(np.asarray(X)))
    scale = jnp.arange(1.0, 13.0)[None, :, None]
    lengths = np.linalg.norm(l2_normalize(X, scale), axis=-1)
    assert_close(lengths, np.tile(np.arange(1, 13), (2, 1)))
    assert l2_normalize(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_heads_are_cut_from_projections_side_by_side():
    signs = np.where(np.asarray(X) > 0, 2, -2).astype(np.float32)
    unit, plain, scaled = split_heads(signs, [1.0, None, jnp.array([3.0, 5.0])], num_heads=2)
    expected = np.sign(signs).reshape(2, 12, 3, 2, 1)
    assert_close(unit, expected[:, :, 0])
    assert_equal(plain, 2 * expected[:, :, 1])
    assert_close(scaled, expected[:, :, 2] * [[3.0], [5.0]])


def test_one_device_cuts_heads_without_an_axis_of_one_group_of_them():
    layers = [dense(6, 4, rngs=nnx.Rngs(0))] * 3

    def heads(x):
        return split_heads(project_to_heads(x, 2, *layers), [1.0, None, 2.0], num_heads=2)

    traced = jax.make_jaxpr(heads)(X)
    made = [out.aval.shape for each in equations(traced.jaxpr) for out in each.outvars]
    assert (2, 12, 12) in made and (2, 12, 1, 12) not in made and (6, 1, 4) not in made


BLOCKS = 3

# For each model: masks of its layers, out of the loop over blocks and in it.
MASKS = {
    "fixed_dual": 3 * 3,
    # Once for the segment: the first half of layer 0, all but the projections of the last
    # recurrent layer, and the layers above it. The rest once a block.
    "feedback_fixed_single": 2 + BLOCKS * (3 + 3 + 1),
}


def prepare(name, rate=0.3):
    model = random_model(dataclasses.replace(MODELS[name], dropout=rate))
    return model, random_tokens(2, 4 * BLOCKS), random_like(model.initial_state(2))


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones(10_000)
    dropped = layers.dropout(x, 0.2, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, 1.25}
    assert abs(np.mean(dropped == 0) - 0.2) < 0.02
    assert layers.dropout(x, 0.2, None) is x and layers.dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("leading_axes", [0, 1, 2])
@pytest.mark.parametrize("shape", [(8, 64, 96), (4, 8, 32, 64)])
def test_an_entry_falls_out_without_regard_to_its_neighbours_and_to_other_masks(
    shape, leading_axes
):
    rate, ones = 0.3, jnp.ones(shape)
    masks = [layers.dropout(ones, rate, jax.random.key(seed), leading_axes) > 0 for seed in (0, 1)]
    assert abs(masks[0].mean() - (1 - rate)) < 0.01
    others = [masks[1], *(jnp.roll(masks[0], 1, axis) for axis in range(len(shape)))]
    for other in others:
        assert abs((masks[0] == other).mean() - ((1 - rate) ** 2 + rate**2)) < 0.01


def test_rows_and_columns_of_masks_are_as_even_as_independent_draws():
    """Sums over rows and columns spread as binomial ones do, and neighbours agree by chance."""
    rate, masks, shape = 0.1, 64, (128, 256)
    kept = layers.dropout(jnp.ones((masks, *shape)), rate, jax.random.key(0), 1) > 0
    draws = (np.asarray(kept) - (1 - rate)) / np.sqrt(rate * (1 - rate))
    for axis in (1, 2):
        squares = draws.sum(axis) ** 2 / draws.shape[axis]
        assert abs(squares.mean() - 1) < 5 * np.sqrt(2 / squares.size)
        for distance in (1, 8, 32):
            products = draws * np.roll(draws, distance, axis)
            # Masks with a pattern have one each, of either sign.
            squares = products.sum((1, 2)) ** 2 / products[0].size
            assert squares.mean() < 1 + 5 * np.sqrt(2 / masks)


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_has_a_key_of_its_own(name, monkeypatch):
    keys, make_seeds = [], layers.make_seeds

    def recording(key, *arguments):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return make_seeds(key, *arguments)

    monkeypatch.setattr(layers, "make_seeds", recording)
    model, tokens, state = prepare(name)
    jax.jit(lambda *inputs: model(*inputs, dropout_key=jax.random.key(0)))(tokens, state)
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == MASKS[name] + 1


def test_the_key_decides_and_without_one_nothing_is_dropped():
    model, tokens, state = prepare("fixed_single")
    logits, after = read(model, tokens, state, key=jax.random.key(1))
    assert_equal(read(model, tokens, state, key=jax.random.key(1)), (logits, after))
    other, _ = read(model, tokens, state, key=jax.random.key(2))
    assert np.all(np.any(other != logits, axis=-1))
    without = read(model, tokens, state)
    assert_equal(without, read(*prepare("fixed_single", rate=0.0)))
    assert np.all(np.any(without[0] != logits, axis=-1))
