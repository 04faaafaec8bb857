"""Laws that hold for every baseline."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.model.parameters import count_parameters, named_parameters
from block_recurrent.training.build import abstract_model
from tests.baselines.tiny import CONFIGS, initial_baseline, random_baseline
from tests.helpers import (
    VOCABULARY,
    assert_close,
    assert_equal,
    random_like,
    random_tokens,
    read,
    row,
)

N = 8  # the Transformer's segment
TOKENS = random_tokens(2, 3 * N)
one_of_each = pytest.mark.parametrize("name", ["transformer_xl", "transformer", "lstm"])
every_baseline = pytest.mark.parametrize("name", CONFIGS)
# One call gives what several calls give.
EXACT = ("same_length", "lstm", "transformer")


def read_in_calls(model, tokens, lengths, state=None):
    """Logits of several calls, side by side, and the last state."""
    state, logits, begin = state or model.initial_state(len(tokens)), [], 0
    for length in lengths:
        more, state = read(model, tokens[:, begin : begin + length], state)
        logits.append(more)
        begin += length
    return jnp.concatenate(logits, axis=1), state


def in_document(name):
    """A model, and a state after a segment."""
    model = random_baseline(CONFIGS[name])
    return model, read(model, TOKENS[:, :N], model.initial_state(2))[1]


@every_baseline
def test_every_array_of_the_state_has_the_batch_on_its_second_axis(name):
    model = random_baseline(CONFIGS[name])
    states = model.initial_state(3), read(model, random_tokens(3, 4), model.initial_state(3))[1]
    for state in states:
        assert state.batch_size == 3
        assert all(leaf.shape[1] == 3 for leaf in jax.tree.leaves(state))


@every_baseline
def test_a_token_sees_what_is_before_it_and_nothing_after(name):
    model, state = in_document(name)
    tokens = jnp.arange(N)[None]

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def seen_from(model, place):
        def feature(model):
            return jnp.sum(model.features(tokens, row(state, 0))[0][0, place] ** 3)

        return jnp.any(jax.grad(feature)(model).embedding[...][:N] != 0, axis=-1)

    for place, seen in enumerate(seen_from(model, jnp.arange(N))):
        assert not np.any(seen[place + 1 :]) and seen[place]
        assert np.all(seen[: place + 1]) or name == "same_length"


@every_baseline
def test_a_document_start_forgets_and_only_in_its_row(name):
    model, state = in_document(name)
    tokens = TOKENS[:, N : 2 * N]
    start = jnp.array([True, False])
    (logits, after), (kept, kept_state) = (
        read(model, tokens, state, start),
        read(model, tokens, state),
    )
    fresh, fresh_state = read(model, tokens, model.initial_state(2))
    assert_close((logits[0], row(after, 0)), (fresh[0], row(fresh_state, 0)))
    assert_equal((logits[1], row(after, 1)), (kept[1], row(kept_state, 1)))
    forgets = name in ("transformer", "no_memory")
    assert forgets == np.allclose(kept[0], fresh[0], atol=1e-4)


@every_baseline
def test_rows_go_their_own_way_after_one_was_reset(name):
    model, state = in_document(name)
    _, state = read(model, TOKENS[:, N : N + 4], state, jnp.array([True, False]))
    if name == "transformer":  # rows within a segment must be at one place of it
        state = model.initial_state(2)
    both, _ = read(model, TOKENS[:, -4:], state)
    alone = [read(model, TOKENS[i : i + 1, -4:], row(state, i))[0] for i in range(2)]
    assert_close(both, jnp.concatenate(alone))


@pytest.mark.parametrize("name", EXACT)
def test_one_call_is_several(name):
    model = random_baseline(CONFIGS[name])
    whole = 3 * N if name != "transformer" else N
    expected, after = read_in_calls(model, TOKENS, [whole] * (3 * N // whole))
    for lengths in ([4] * 6, [1] * 8 + [4, 2, 1, 1] + [2] * 4, [2] * 4 + [8] + [4, 4]):
        logits, state = read_in_calls(model, TOKENS, lengths)
        assert_close(logits, expected)
        if name != "transformer":  # whose memory after a segment means nothing
            assert_close(state, after)


@jax.jit
def loss_and_gradients(model, tokens, state, key):
    def loss(model):
        logits, after = model(tokens, state, dropout_key=key)
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)), after

    (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(model)
    return value, after, named_parameters(gradients)


@pytest.mark.parametrize("name", ["transformer_xl", "lstm"])
def test_every_parameter_has_a_gradient_and_what_is_computed_again_is_the_same(name):
    state, key = in_document(name)[1], jax.random.key(1)
    configs = [dataclasses.replace(CONFIGS[name], remat=r, dropout=0.1) for r in ("none", "layer")]
    expected, actual = (
        loss_and_gradients(random_baseline(config), TOKENS[:, :N], state, key) for config in configs
    )
    assert_close(actual, expected)
    for path, gradient in expected[2].items():
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), path


@one_of_each
def test_dropout_follows_its_key(name):
    config = dataclasses.replace(CONFIGS[name], dropout=0.3)
    model = random_baseline(config)
    state, tokens = model.initial_state(2), TOKENS[:, :N]
    first, again, other = (read(model, tokens, state, key=jax.random.key(k))[0] for k in (0, 0, 1))
    assert_equal(first, again)
    without, _ = read(random_baseline(CONFIGS[name]), tokens, state)
    assert not np.allclose(first, other) and not np.allclose(first, without)


@one_of_each
def test_bfloat16_keeps_parameters_and_logits_float32(name):
    exact = initial_baseline(CONFIGS[name])
    model = initial_baseline(dataclasses.replace(CONFIGS[name], dtype="bfloat16"))
    tokens = TOKENS[:, :N]
    logits, state = read(model, tokens, model.initial_state(2))
    assert logits.dtype == "float32"
    assert {array.dtype.name for array in named_parameters(model).values()} == {"float32"}
    expected, _ = read(exact, tokens, exact.initial_state(2))
    assert np.std(logits - expected) <= 0.03 * np.std(expected)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert kinds == ({"float32"} if name == "lstm" else {"bfloat16", "int32"})


@one_of_each
def test_parameters_are_as_many_as_the_equations_say(name):
    config = CONFIGS[name]
    e, v, layers = config.model_size, config.vocab_size, config.num_layers
    if isinstance(config, br.LSTMConfig):
        h = config.hidden_size
        expected = layers * (e + 4 * h * (e + h) + 4 * h + h * e) + e
    else:
        heads, m = config.num_heads * config.head_size, config.mlp_size
        expected = layers * (5 * e * heads + 4 * e + 2 * e * m + m + e) + 2 * heads + v
    assert count_parameters(abstract_model(config), embedding=False) == expected


def test_initial_values_are_those_of_the_authors():
    config = br.TransformerXLConfig(
        vocab_size=50, num_layers=1, model_size=200, num_heads=8, head_size=25, mlp_size=200
    )
    for path, array in named_parameters(initial_baseline(config)).items():
        scale = path.endswith("scale")
        bias = path.endswith("bias") and "content" not in path and "position" not in path
        assert np.mean(array) == pytest.approx(float(scale), abs=0.006), path
        assert np.std(array) == (0 if bias else pytest.approx(0.02, rel=0.2)), path


WRONG_CALLS = {
    "tokens must hold integer values": {"tokens": jnp.zeros((2, 8))},
    r"tokens has shape \(8,\)": {"tokens": jnp.zeros(8, int)},
    "the length of a segment must be": {"tokens": jnp.zeros((2, 0), int)},
    "state must be a": {"state": None},
    "state.* has shape": {"tokens": jnp.zeros((3, 8), int)},
    "start_of_document must hold bool": {"start_of_document": jnp.zeros(2)},
    "start_of_document has shape": {"start_of_document": jnp.zeros(3, bool)},
    "dropout_key must be one key": {"dropout_key": 3},
}


@one_of_each
@pytest.mark.parametrize("words", WRONG_CALLS)
def test_wrong_calls_are_answered_with_a_sentence(name, words):
    model, state = in_document(name)
    call = {"tokens": TOKENS[:, :8], "state": state} | WRONG_CALLS[words]
    with pytest.raises((TypeError, ValueError), match=words):
        model(**call)


def test_a_model_is_built_from_its_own_configuration():
    for name, other in {
        "transformer_xl": "lstm",
        "transformer": "no_memory",
        "lstm": "clamped",
    }.items():
        kind = type(initial_baseline(CONFIGS[name]))
        with pytest.raises(TypeError, match=f"config must be a {kind.__name__}Config"):
            kind(CONFIGS[other], rngs=nnx.Rngs(0))


# Generation.


@pytest.mark.parametrize("name", EXACT)
def test_token_by_token_is_the_parallel_pass(name):
    model = random_baseline(CONFIGS[name])
    lengths = [N] * 3 if name == "transformer" else [3 * N]
    expected, _ = read_in_calls(model, TOKENS, lengths)
    for length in (1, 7, 8, 9, 19):
        logits, state = br.prefill(model, model.initial_state(2), TOKENS[:, :length])
        assert_close(logits, expected[:, length - 1])
        logits, _ = br.prefill(model, state, TOKENS[:, length : length + 5])
        assert_close(logits, expected[:, length + 4])


@one_of_each
def test_generation_goes_on_from_any_point(name):
    model = random_baseline(CONFIGS[name])
    state = model.initial_state(2)
    drawn = br.generate(model, state, TOKENS[:, :6], max_new_tokens=12, temperature=0.0)
    for count in range(12):
        logits, state = br.prefill(
            model, state, TOKENS[:, :6] if count == 0 else drawn[:, count - 1 : count]
        )
        assert_equal(drawn[:, count], jnp.argmax(logits, axis=-1))
    again = br.generate(model, state, drawn[:, 11:], max_new_tokens=3, seed=1)
    assert_equal(again, br.generate(model, state, drawn[:, 11:], max_new_tokens=3, seed=1))
    assert np.min(again) >= 0 and np.max(again) < VOCABULARY


def test_rows_at_several_places_of_a_segment_are_read_token_by_token():
    model, _ = in_document("transformer")
    state = read(model, TOKENS[:, :4], model.initial_state(2))[1]
    assert [model.next_length(state, left) for left in (1, 3, 4, 20)] == [1, 2, 4, 4]
    assert model.next_length(state._replace(length=jnp.array([[4, 7]])), 9) == 1
    assert model.next_length(model.initial_state(2), 9) == 8


@one_of_each
def test_rows_of_several_lengths_are_read_as_if_alone(name):
    model, lengths, more = random_baseline(CONFIGS[name]), np.array([3, 11]), np.array([3, 2])
    logits, state = br.prefill(model, model.initial_state(2), TOKENS, lengths)
    after, _ = br.prefill(model, state, TOKENS, more)
    for i, length in enumerate(lengths):
        tokens = TOKENS[i : i + 1]
        expected, alone = br.prefill(model, model.initial_state(1), tokens[:, :length])
        assert_close(logits[i], expected[0])
        expected, _ = br.prefill(model, alone, tokens[:, : more[i]])
        assert_close(after[i], expected[0])


@one_of_each
def test_a_call_leaves_each_row_after_its_length(name):
    """Also within the second of the Transformer's segments."""
    model, tokens, lengths = random_baseline(CONFIGS[name]), TOKENS[:, : 2 * N], np.array([0, 12])
    start = model.initial_state(2)
    logits, state = jax.jit(lambda model: model(tokens, start, lengths=lengths))(model)
    calls = [N, 4] if name == "transformer" else [12]
    expected, alone = read_in_calls(model, tokens[1:], calls, row(start, 1))
    assert_close(logits[1:, :12], expected)
    more, _ = read(model, tokens[:, :4], state)
    for i, before in enumerate((row(start, 0), alone)):
        assert_close(more[i], read(model, tokens[i : i + 1, :4], before)[0][0])


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_prompts_that_do_not_fit_are_refused(name):
    model = random_baseline(CONFIGS[name])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        br.generate(model, model.initial_state(1), [[VOCABULARY]])
    with pytest.raises(ValueError, match="state.* has shape"):
        br.prefill(model, model.initial_state(2), [[0]])
    with pytest.raises(TypeError, match="state must be a"):
        br.prefill(model, random_like(jnp.zeros(3)), [[0]])
