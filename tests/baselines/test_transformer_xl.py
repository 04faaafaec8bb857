"""What is special to Transformer-XL, and to the vanilla Transformer."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent.baselines.relative import encode_distances, shift_rows, visible_keys
from block_recurrent.interop.transformer_xl import load_parameters, to_parameters
from tests.baselines.tiny import CONFIGS, random_baseline
from tests.helpers import assert_close, assert_equal, random_like, random_tokens, read

TOKENS = random_tokens(2, 16)


def test_the_shift_gives_every_key_the_score_of_its_distance():
    length, places = 4, 3
    keys = places + length
    by_distance = jnp.broadcast_to(jnp.arange(keys - 1, -1, -1.0), (2, length, keys))
    shifted = shift_rows(by_distance)
    for i in range(length):
        for j in range(places + i + 1):
            assert_equal(shifted[:, i, j], jnp.full(2, places + i - j, jnp.float32))


def test_distances_are_sines_and_cosines():
    encoding = np.asarray(encode_distances(6, 8, 4))
    for column, distance in enumerate((4, 4, 3, 2, 1, 0)):
        angles = distance * 10_000.0 ** (-2 * np.arange(4) / 8)
        assert_close(encoding[column], np.concatenate([np.sin(angles), np.cos(angles)]), 1e-6)


def test_visible_keys_are_those_that_are_there():
    visible = np.broadcast_to(visible_keys(2, 3, jnp.array([0, 2])), (2, 2, 5))
    assert visible.astype(int).tolist() == [
        [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]],
    ]
    spanned = visible_keys(2, 3, jnp.array([3]), span=3)[0]
    assert spanned.astype(int).tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("length", [1, 8])
def test_same_length_sees_exactly_the_newest_keys(length):
    """In one layer; with calls shorter and longer than the memory."""
    config = dataclasses.replace(CONFIGS["same_length"], num_layers=1)
    model, span = random_baseline(config), config.memory
    state = model.initial_state(1)._replace(length=jnp.full((1, 1), span, jnp.int32))
    state = state._replace(memory=random_like(state.memory))
    tokens = jnp.arange(length)[None]

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(model, memory, place):
        return jnp.sum(model.features(tokens, state._replace(memory=memory))[0][0, place] ** 3)

    for place in range(length):
        of_model, of_memory = gradients(model, state.memory, place)
        seen = np.concatenate([of_memory[0, 0], of_model.embedding[...][:length]]) != 0
        places = np.arange(span + length)
        own = span + place
        assert_equal(np.any(seen, axis=-1), (places <= own) & (places > own - span))


def test_without_same_length_a_token_sees_all_that_is_there():
    config = dataclasses.replace(CONFIGS["transformer_xl"], num_layers=1)
    model = random_baseline(config)
    _, state = read(model, TOKENS[:, :3], model.initial_state(2))

    def feature(memory):
        return jnp.sum(model.features(TOKENS[:, :8], state._replace(memory=memory))[0][:, -1] ** 3)

    seen = np.any(jax.jit(jax.grad(feature))(state.memory)[0] != 0, axis=-1)
    assert_equal(seen, np.array([[False, False, True, True, True]] * 2))
    assert_equal(state.length, jnp.full((1, 2), 3))


def test_what_lies_in_empty_places_means_nothing():
    model = random_baseline(CONFIGS["transformer_xl"])
    state = model.initial_state(2)
    expected, _ = read(model, TOKENS, state)
    assert_equal(read(model, TOKENS, state._replace(memory=random_like(state.memory)))[0], expected)


def test_minus_one_is_no_clamping():
    configs = [dataclasses.replace(CONFIGS["clamped"], clamp_length=c) for c in (None, -1, 100, 3)]
    logits = [
        read(model, TOKENS, model.initial_state(2))[0] for model in map(random_baseline, configs)
    ]
    assert_equal(logits[0], logits[1])
    assert_equal(logits[0], logits[2])
    assert not np.allclose(logits[0], logits[3])


def test_the_transformer_is_transformer_xl_without_memory():
    model = random_baseline(CONFIGS["transformer"])
    other = random_baseline(CONFIGS["no_memory"])
    for tokens in (TOKENS[:, :8], TOKENS[:, 8:]):
        logits, _ = read(model, tokens, model.initial_state(2))
        assert_close(logits, read(other, tokens, other.initial_state(2))[0])


def test_the_transformer_carries_no_memory_between_whole_segments():
    model = random_baseline(CONFIGS["transformer"])
    state = model.initial_state(2)
    assert state.memory.size == 0
    assert_equal(read(model, TOKENS[:, :8], state)[1], state)
    state = read(model, TOKENS[:, :2], state)[1]
    assert state.memory.shape == (2, 2, 8, 10) and state.length.tolist() == [[2, 2]]
    assert read(model, TOKENS[:, :2], state, jnp.array([True, False]))[1].length.tolist() == [
        [2, 4]
    ]


@pytest.mark.parametrize("length", [3, 12])
def test_a_call_that_does_not_fit_the_segment_is_refused(length):
    model = random_baseline(CONFIGS["transformer"])
    with pytest.raises(ValueError, match=f"a call of {length} tokens is neither whole segments"):
        model(TOKENS[:, :length], model.initial_state(2))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("transformer", {}), ("clamped", {}), ("same_length", {}), ("transformer_xl", {"memory": 12})],
)
def test_a_call_of_several_segments_is_as_many_calls_without_gradient_between(name, changes):
    config = dataclasses.replace(CONFIGS[name], **changes)
    segments = config if name == "transformer" else dataclasses.replace(config, segment=8)
    model, together = random_baseline(config), random_baseline(segments)
    start = jnp.array([False, True])

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradients(model, tokens, state, start):
        features, state = model.features(tokens, state, start_of_document=start)
        return jnp.sum(jnp.sin(features)), (features, state)

    _, (_, before) = gradients(model, TOKENS[:, :8], model.initial_state(2), start)
    state, sums, parts = before, [], []
    for tokens, begins in ((TOKENS[:, :8], start), (TOKENS[:, 8:16], start & False)):
        gradient, (features, state) = gradients(model, tokens, state, begins)
        sums.append(gradient)
        parts.append(features)
    whole, (features, after) = gradients(together, TOKENS[:, :16], before, start)
    assert_close((features, after), (jnp.concatenate(parts, axis=1), state))
    assert_close(to_parameters(whole), to_parameters(jax.tree.map(jnp.add, *sums)))


def test_a_prompt_is_read_whatever_the_segment_is():
    plain = CONFIGS["clamped"]
    new = []
    for config in (plain, dataclasses.replace(plain, segment=6)):
        model = random_baseline(config)
        new.append(
            br.generate(model, model.initial_state(2), TOKENS, max_new_tokens=3, temperature=0.0)
        )
    assert_equal(*new)


def test_parameters_by_name_read_back():
    config = CONFIGS["clamped"]
    assert isinstance(config, br.TransformerXLConfig)
    named = to_parameters(random_baseline(config))
    assert_equal(to_parameters(load_parameters(named, config)), named)
    named["layers.0.r_net.weight"] = named.pop("layers.0.dec_attn.r_net.weight")
    named["r_w_bias"] = named["r_w_bias"].T
    with pytest.raises(ValueError) as caught:
        load_parameters(named, config)
    for words in ("missing: layers.0.dec_attn.r_net.weight", "unknown: layers.0.r_net.weight"):
        assert words in str(caught.value)
    assert "misshapen: r_w_bias is (4, 3), but (3, 4) is needed" in str(caught.value)
