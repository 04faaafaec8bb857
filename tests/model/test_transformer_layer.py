"""Laws of the sliding-window layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent import KeysValues, SlidingWindowLayer
from tests.helpers import SIZES, layer_config, random_like, randomize

BATCH, LENGTH, WINDOW = 2, 12, SIZES["window"]
CACHE = (BATCH, WINDOW, 2, 4)


def make(attends_to_states=False, **changes):
    config = layer_config(**changes)
    return randomize(
        lambda rngs: SlidingWindowLayer(config, attends_to_states=attends_to_states, rngs=rngs)
    )


def inputs(batch=BATCH, length=LENGTH, states=None):
    shapes = [(batch, length, 12), *[(batch, WINDOW, 2, 4)] * 2]
    shapes += [] if states is None else [(batch, states, 3, 2, 4)] * 2
    x, *pairs = random_like([jnp.zeros(shape) for shape in shapes])
    return x, KeysValues(*pairs[:2]), KeysValues(*pairs[2:]) if states else None


@pytest.mark.parametrize("positions", ["t5", "rotary"])
def test_a_token_depends_on_itself_and_exactly_the_window_before_it(positions):
    layer = make(positions=positions)
    x, cache, _ = inputs()
    jacobian = jax.jit(jax.jacrev(lambda x, cache: layer(x, cache)[0].sum(-1), (0, 1)))(x, cache)
    # [lane, query, lane, key]: the cache is what stands before the segment.
    by_token = [np.any(y != 0, axis=-1) for y in (jacobian[0], jacobian[1].values.sum(-1))]
    by_key = np.any(jacobian[1].keys != 0, axis=(-1, -2))
    depends = np.concatenate([by_token[1], by_token[0]], axis=-1)
    np.testing.assert_array_equal(by_key, by_token[1])
    lane, query, other, key = np.indices(depends.shape)
    distance = WINDOW + query - key
    np.testing.assert_array_equal(depends, (lane == other) & (distance >= 0) & (distance <= WINDOW))


def test_every_token_of_a_block_sees_all_states_of_its_block_and_no_others():
    layer = make(attends_to_states=True)
    x, cache, states = inputs(states=3)
    read = jax.jit(jax.jacrev(lambda states: layer(x, cache, states)[0].sum(-1)))
    by_state = np.any(read(states).values != 0, axis=(-1, -2))
    lane, query, other, block, _ = np.indices(by_state.shape)
    np.testing.assert_array_equal(by_state, (lane == other) & (query // WINDOW == block))


WRONG = {
    "rank of x": ({"x": (2, 12)}, r"x has shape \(2, 12\), but \[B, N, 12\]"),
    "size of x": ({"x": (2, 12, 8)}, r"x has shape \(2, 12, 8\)"),
    "segment": ({"x": (2, 10, 12)}, "10 tokens is no multiple of the window 4"),
    "no tokens": ({"x": (2, 0, 12)}, "0 tokens is no multiple of the window 4"),
    "batch of keys": ({"keys": (1, 4, 2, 4)}, r"cache.keys has .*\(1, 4, 2, 4\)"),
    "window of keys": ({"keys": (2, 8, 2, 4)}, "cache.keys"),
    "heads of values": ({"values": (2, 4, 1, 4)}, "cache.values"),
    "head size": ({"values": (2, 4, 2, 8)}, "cache.values"),
}


@pytest.mark.parametrize("shapes, words", WRONG.values(), ids=WRONG)
def test_wrong_shapes_are_refused(shapes, words):
    shapes = {"x": (BATCH, LENGTH, 12), "keys": CACHE, "values": CACHE} | shapes
    x, keys, values = (jnp.zeros(shape) for shape in shapes.values())
    with pytest.raises(ValueError, match=words):
        make()(x, KeysValues(keys, values))


@pytest.mark.parametrize("attends", [False, True])
def test_states_are_given_exactly_when_the_layer_attends_to_them(attends):
    x, cache, states = inputs(states=3)
    with pytest.raises(ValueError, match="state_context must be given exactly when"):
        make(attends)(x, cache, None if attends else states)


def test_states_of_another_number_of_blocks_are_refused():
    x, cache, states = inputs(states=2)
    with pytest.raises(ValueError, match="state_context"):
        jax.eval_shape(make(attends_to_states=True), x, cache, states)
