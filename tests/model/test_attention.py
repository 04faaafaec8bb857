"""Laws of the pure functions of attention, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent.model.attention import (
    KeysValues,
    RMSNorm,
    apply_dense,
    attend,
    dense,
    dropout,
    join_blocks,
    l2_normalize,
    last_window,
    split_blocks,
    window_tiles,
)
from tests import reference
from tests.helpers import assert_close, assert_equal, random_like, randomize

X = random_like(jnp.zeros((2, 12, 6)))


def test_norm_has_no_mean_and_no_bias():
    norm = randomize(lambda rngs: RMSNorm(6))
    assert_close(norm(X), reference.rms(np.asarray(X), np.asarray(norm.scale[...])))
    assert norm(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(norm(jnp.zeros((1, 6))))


def test_l2_normalised_vectors_have_the_given_length():
    assert_close(l2_normalize(X), reference.l2_normalise(np.asarray(X)))
    scale = jnp.arange(1.0, 13.0)[:, None]
    lengths = np.linalg.norm(l2_normalize(X, scale), axis=-1)
    assert_close(lengths, np.tile(np.arange(1, 13), (2, 1)))
    assert l2_normalize(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_dense_layers_together_are_each_alone():
    layers = [randomize(lambda rngs, size=size: dense(6, size, rngs=rngs)) for size in (3, 1, 5)]
    assert_close(apply_dense(X, *layers), [X @ layer.kernel[...] for layer in layers])
    (low,) = apply_dense(X.astype(jnp.bfloat16), layers[0])
    assert low.dtype == jnp.bfloat16


def test_attention_is_a_softmax_over_visible_keys():
    queries, keys, values, bias = random_like(
        [jnp.zeros((2, 3, 2, 4)), *[jnp.zeros((2, 5, 2, 4))] * 2, jnp.zeros((2, 3, 5))]
    )
    visible = np.random.default_rng(0).random((3, 5)) < 0.6
    visible[:, 0] = True
    masked = jnp.where(visible, bias, -jnp.inf)
    heads = attend(queries, KeysValues(keys, values), masked)
    arrays = [np.asarray(x, np.float64) for x in (queries, keys, values)]
    expected = reference.attend(*arrays, np.ones(2), np.asarray(bias), visible)
    assert_close(heads.reshape(2, 3, 8), expected)


def test_attention_weights_are_never_rounded_before_the_softmax():
    """Logits of 300 +- 0.5 are one number in bfloat16."""
    queries = jnp.full((1, 1, 1), 300, jnp.bfloat16)
    keys = jnp.ones((2, 1, 1), jnp.bfloat16)
    values = jnp.array([0, 1], jnp.bfloat16).reshape(2, 1, 1)
    bias = jnp.array([[[-0.5, 0.5]]])
    heads = attend(queries, KeysValues(keys, values), bias)
    assert heads.dtype == jnp.bfloat16
    assert_close(heads.astype(jnp.float32), jax.nn.sigmoid(jnp.ones((1, 1, 1))), 4e-3)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones(10_000)
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, 1.25}
    assert abs(np.mean(dropped == 0) - 0.2) < 0.02
    assert dropout(x, 0.2, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_of_attention_falls_on_the_probabilities():
    queries, keys, values = random_like([jnp.zeros((50, 1, 4))] * 3)
    dropped = attend(
        queries,
        KeysValues(keys, jnp.ones_like(values)),
        dropout_rate=0.5,
        dropout_key=jax.random.key(0),
    )
    assert len(np.unique(dropped[:, 0, 0])) == 50
    assert_equal(dropped, jnp.broadcast_to(dropped[..., :1], dropped.shape))
    assert abs(np.mean(dropped) - 1) < 0.1


def test_blocks_are_cut_and_joined():
    blocks = split_blocks(X, 4)
    assert_equal(blocks[:, 1], X[:, 4:8])
    assert_equal(join_blocks(blocks), X)


def test_a_tile_is_a_block_and_the_one_before():
    current = KeysValues(*random_like([jnp.zeros((2, 12, 2, 3))] * 2))
    previous = KeysValues(*random_like([jnp.zeros((2, 4, 2, 3))] * 2, seed=1))
    tiles = window_tiles(current, previous)
    for tile, now, before in zip(tiles, current, previous, strict=True):
        document = np.concatenate([before, now], axis=1)
        for block in range(3):
            assert_equal(tile[:, block], document[:, 4 * block : 4 * block + 8])
    assert_equal(last_window(current, 4).keys, current.keys[:, 8:])
