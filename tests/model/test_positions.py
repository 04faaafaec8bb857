"""Laws of the position bias, the rotary embedding and the window they live in."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from block_recurrent.model.positions import (
    POSITIONS,
    Rotary,
    T5Bias,
    t5_bucket,
    window_bias,
)
from tests import reference
from tests.helpers import assert_close, random_like, randomize


def test_buckets_are_those_of_t5():
    far = np.arange(1000)
    expected = [reference.t5_bucket(distance) for distance in far]
    assert t5_bucket(far).tolist() == expected
    assert expected[:17] == list(range(17)) and expected.index(31) == 113


def test_each_distance_is_biased_by_its_bucket():
    positions = randomize(lambda rngs: T5Bias(2, rngs=rngs))
    bias = positions.bias(130)
    expected = [positions.table[:, reference.t5_bucket(130 - column)] for column in range(130)]
    assert_close(bias, np.stack(expected, axis=1))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_query_sees_exactly_the_window_before_it(window):
    bias = np.random.default_rng(0).normal(size=(2, window)).astype(np.float32)
    expected = np.full((2, window, 2 * window), -np.inf)
    for query in range(window):
        for key in range(2 * window):
            distance = window + query - key
            if 1 <= distance <= window:
                expected[:, query, key] = bias[:, window - distance]
    tile = np.asarray(window_bias(jnp.asarray(bias)))
    np.testing.assert_array_equal(tile, expected.astype(np.float32))
    assert np.all(np.isfinite(tile).sum(axis=-1) == window)


def test_rotation_is_the_transcription():
    x = random_like(jnp.zeros((2, 7, 3, 6)))
    assert_close(Rotary(3).rotate(x, np.arange(7)), reference.rotate(np.asarray(x), range(7)))


def test_products_of_rotated_vectors_depend_on_the_difference_of_positions():
    rotary, x = Rotary(1), random_like(jnp.zeros((2, 1, 8)))

    def product(query, key):
        queries = rotary.rotate(x[:1], np.array([query]))
        return jnp.sum(queries * rotary.rotate(x[1:], np.array([key])))

    far = [product(9, 4), product(105, 100), product(40_005, 40_000)]
    assert_close(far, [product(5, 0)] * 3, 1e-6)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2


def test_positions_are_rolled():
    x = random_like(jnp.zeros((1, 5, 1, 8)))
    expected = Rotary(1).rotate(x, np.roll(np.arange(5), 2))
    assert_close(Rotary(1).rotate(x, np.arange(5), jnp.int32(2)), expected)


def test_each_scheme_leaves_the_other_half_alone():
    x = random_like(jnp.zeros((2, 1, 8)))
    t5, rotary = (POSITIONS[kind](1, nnx.Rngs(0)) for kind in ("t5", "rotary"))
    assert t5.rotate(x, np.arange(2)) is x
    assert rotary.bias(3).shape == (1, 3) and not np.any(rotary.bias(3))
    assert rotary.rotate(x.astype(jnp.bfloat16), np.arange(2)).dtype == jnp.bfloat16
