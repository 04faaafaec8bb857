"""Laws of dropout: on exactly when a key is given, and every mask its own."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import MODELS, assert_equal, random_like, random_model, random_tokens, read

BLOCKS = 3

# For each model: masks of the window layers, of the attention to states, in and out of the loop.
MASKS = {
    "fixed_dual": 3 * 3 + 2,
    # Once for the segment: the first half of layer 0, all but the projections of the last
    # recurrent layer, and the layers above it. The rest once a block.
    "feedback_fixed_skip": 2 + 3 + 4 + BLOCKS * (2 + 1),
    "feedback_fixed_single": 3 + BLOCKS * (4 + 4 + 1),
}


def prepare(name, rate=0.3):
    model = random_model(dataclasses.replace(MODELS[name], dropout=rate))
    return model, random_tokens(2, 4 * BLOCKS), random_like(model.initial_state(2))


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_has_a_key_of_its_own(name, monkeypatch):
    keys, draw = [], jax.random.bernoulli

    def recording(key, *arguments):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return draw(key, *arguments)

    monkeypatch.setattr(jax.random, "bernoulli", recording)
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
