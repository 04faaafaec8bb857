"""Laws of decoding token by token: it is the parallel pass, from any point, at any speed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.model import decoding
from block_recurrent.model.decoding import generate, prefill, row_lengths
from block_recurrent.model.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, sample
from tests.helpers import (
    MODELS,
    SIZES,
    VOCABULARY,
    assert_close,
    assert_equal,
    model_config,
    random_like,
    random_model,
    random_tokens,
    read,
    row,
    slow,
)

BATCH, WINDOW = 2, SIZES["window"]
LENGTH = 4 * WINDOW  # from inside a block over three whole ones
CONFIGS = {
    "slide": MODELS["slide"],
    "fixed_skip": MODELS["fixed_skip"],
    "lstm_dual_twice": model_config(0, 2, gate="lstm", wiring="dual"),
    "feedback_fixed_skip": MODELS["feedback_fixed_skip"],
    "feedback_lstm_single_rotary": MODELS["feedback_lstm_single"],
}
TOKENS = random_tokens(BATCH, LENGTH)
LOGITS = 2 * random_like(jnp.zeros((50, VOCABULARY)))

SLOW = "feedback_fixed_skip"
every_model = pytest.mark.parametrize("name", [*slow(SLOW), *sorted(CONFIGS.keys() - {SLOW})])
# Here all of `generate` is compiled, always for 9 to 16 new tokens.
two_models = pytest.mark.parametrize("name", ["fixed_skip", "feedback_lstm_single_rotary"])


def prepare(name: str = "fixed_skip"):
    """The model and a state in mid-document."""
    model = random_model(CONFIGS[name])
    return model, random_like(model.initial_state(BATCH))


@jax.jit
def decode(model, carried, tokens):
    """Logits [B, P, V] after each of the tokens [B, P], read one by one in a compiled loop."""

    def step(carried, token):
        logits, carried = decoding.decode_in_block(model, token, carried)
        return carried, logits

    return jnp.swapaxes(jax.lax.scan(step, carried, tokens.T)[1], 0, 1)


def decode_after(model, state, tokens, prefilled: int):
    """Logits for the tokens after the first `prefilled` ones."""
    _, point, current = decoding.read_blocks(model, state, tokens[:, :prefilled], "tokens")
    carried = decoding.start_in_block(model, point, current)
    return decode(model, carried, tokens[:, prefilled:])


@every_model
def test_token_by_token_is_the_parallel_pass(name):
    model, state = prepare(name)
    expected, _ = read(model, TOKENS, state)
    inside = WINDOW // 2
    assert_close(decode_after(model, state, TOKENS, inside), expected[:, inside:])


def test_token_by_token_is_the_parallel_pass_in_bfloat16():
    model = random_model(model_config(0, num_layers=1, dtype="bfloat16"))
    state = model.initial_state(BATCH)
    expected, _ = read(model, TOKENS, state)
    logits = decode_after(model, state, TOKENS, prefilled=WINDOW)
    assert logits.dtype == jnp.float32
    assert_close(logits, expected[:, WINDOW:], 0.03)  # bfloat16 has 8 bits


@every_model
def test_prefill_of_any_length_is_the_parallel_pass(name):
    model, state = prepare(name)
    expected, _ = read(model, TOKENS, state)
    for length in range(1, LENGTH + 1):
        logits, point = prefill(model, state, TOKENS[:, :length])
        assert point.length == length % WINDOW
        assert_close(logits, expected[:, length - 1])


@every_model
@pytest.mark.parametrize("edges", [[1], [4], [3, 5], [2, 3, 10], [7, 8]])
def test_prefill_in_pieces_is_prefill_at_once(name, edges):
    model, state = prepare(name)
    logits, point = None, state
    for piece in jnp.split(TOKENS[:, :11], edges, axis=1):
        logits, point = prefill(model, point, piece)
    assert_equal((logits, point), prefill(model, state, TOKENS[:, :11]))


SEVERAL = np.array([3, 8, 5, 11])  # lengths: within a block, whole blocks, over several


@pytest.mark.parametrize("name", ["lstm_dual_twice", "feedback_lstm_single_rotary"])
def test_rows_of_several_lengths_are_read_as_if_alone(name):
    model = random_model(CONFIGS[name])
    state, tokens = random_like(model.initial_state(4)), random_tokens(4, LENGTH)
    logits, point = prefill(model, state, tokens, SEVERAL)
    more = SEVERAL[::-1]
    after, _ = prefill(model, point, tokens, more)
    for i, length in enumerate(SEVERAL):
        own, prompt = row(state, i), tokens[i : i + 1]
        expected, alone = prefill(model, own, prompt[:, :length])
        assert_close(logits[i], expected[0])
        assert_close(row(point.block_start, i), alone.block_start)
        assert_equal((point.tokens[i], point.length[i]), (alone.tokens[0], alone.length))
        expected, _ = prefill(model, alone, prompt[:, : more[i]])
        assert_close(after[i], expected[0])


@two_models
def test_generation_goes_on_from_the_end_of_each_row(name):
    model, state = prepare(name)
    new = greedy(model, state, TOKENS, 16, lengths=SEVERAL[:BATCH])
    for i, length in enumerate(SEVERAL[:BATCH]):
        own = jax.tree.map(lambda x, i=i: jnp.repeat(x[:, i : i + 1], BATCH, axis=1), state)
        alone = greedy(model, own, jnp.tile(TOKENS[i, :length], (BATCH, 1)), 16)
        assert_equal(new[i], alone[0])


def greedy(model, state, prompt, count, **options):
    return generate(model, state, prompt, max_new_tokens=count, temperature=0, **options)


@two_models
def test_temperature_0_takes_the_likeliest_token_of_the_parallel_pass(name):
    model, state = prepare(name)
    prompt = TOKENS[:, :6]
    new = greedy(model, state, prompt, LENGTH - 6)
    logits, _ = read(model, jnp.concatenate([prompt, new], axis=1), state)
    assert_equal(new, jnp.argmax(logits[:, 5:-1], axis=-1))


@two_models
@pytest.mark.parametrize("prompt_length", range(1, WINDOW + 1))
def test_generating_goes_on_from_any_point_of_a_block(name, prompt_length):
    model, state = prepare(name)
    prompt = TOKENS[:, :prompt_length]
    whole, first = greedy(model, state, prompt, 16), greedy(model, state, prompt, 9)
    _, point = prefill(model, state, jnp.concatenate([prompt, first[:, :-1]], axis=1))
    second = greedy(model, point, first[:, -1:], 9)
    assert_equal(jnp.concatenate([first, second], axis=1)[:, :16], whole)


def test_the_callers_state_stays_usable():
    model, state = prepare()
    _, point = prefill(model, state, TOKENS[:, :5])
    for begin in (state, point):
        kept = jax.tree.map(np.array, begin)
        first, second = (greedy(model, begin, TOKENS[:, :1], 9) for _ in range(2))
        assert_equal(begin, kept)
        assert_equal(first, second)


def draw(rows: int = BATCH, tokens=TOKENS[:, :1], **options) -> np.ndarray:
    """New tokens after a prompt [B, P] at a document's start, sixteen unless told."""
    model = random_model(CONFIGS["fixed_skip"])
    state = model.initial_state(rows)
    return np.asarray(generate(model, state, tokens, **{"max_new_tokens": 16} | options))


def test_the_seed_decides():
    assert_equal(draw(seed=3), draw(seed=3))
    assert np.any(draw(seed=3) != draw(seed=4))


def test_rows_draw_independently():
    alike = draw(tokens=jnp.zeros((BATCH, 1), jnp.int32), temperature=3.0)
    assert np.any(alike[0] != alike[1])
    other = draw(tokens=jnp.array([[0], [1]]), temperature=3.0)
    assert_equal(other[0], alike[0])
    assert np.any(other[1] != alike[1])


def test_fewer_tokens_are_the_beginning_of_more():
    assert_equal(draw(max_new_tokens=9), draw()[:, :9])


def test_the_only_likeliest_token_is_greedy():
    assert_equal(draw(top_k=1, temperature=2.0), draw(temperature=0))
    sampling = Sampling(jax.random.key(0), jnp.float32(2), None, jnp.float32(1e-6))
    assert_equal(sample(LOGITS, sampling, jnp.int32(0)), jnp.argmax(LOGITS, axis=-1))


def test_the_callback_gets_every_token_as_it_comes():
    class Enough(Exception):
        pass

    seen = []

    def take(tokens):
        seen.append(tokens)
        if len(seen) > 16 + 3:
            raise Enough

    assert_equal(draw(), draw(callback=take))
    assert all(isinstance(tokens, np.ndarray) and tokens.dtype == np.int32 for tokens in seen)
    assert_equal(np.stack(seen, axis=1), draw())
    with pytest.raises(Enough):
        draw(callback=take)
    assert len(seen) == 16 + 4
    assert_equal(draw(callback=lambda tokens: len(seen) == 16 + 4), draw()[:, :1])


def test_a_row_ends_with_its_stop_token_and_the_others_go_on():
    free = draw(temperature=3.0)
    stops = [int(free[0, 3]), int(free[1, 6])]
    lengths = row_lengths(free, stops)
    stopped = draw(temperature=3.0, stop_tokens=stops)
    assert lengths[0] != lengths[1] and stopped.shape == (BATCH, max(lengths))
    assert_equal(row_lengths(stopped, stops), lengths)
    for before, after, length in zip(free, stopped, lengths, strict=True):
        assert_equal(after[:length], before[:length])
        assert set(after[length:]) <= {after[length - 1]}
    seen = []
    draw(temperature=3.0, stop_tokens=stops, callback=seen.append)
    assert_equal(np.stack(seen, axis=1), stopped)
    assert_equal(row_lengths(free, []), [16, 16])


def test_one_compiled_loop_serves_many_lengths(monkeypatch):
    draw()  # compiles, for up to sixteen tokens

    def compiling(*arguments):
        raise AssertionError("the loop was compiled again")

    monkeypatch.setattr(decoding, "BY_BLOCKS", decoding.BY_BLOCKS._replace(decode=compiling))
    for length in (9, 12, 15):
        for prompt_length in (1, 3, 4, 9):
            prompt = TOKENS[:, :prompt_length]
            draw(max_new_tokens=length, tokens=prompt, temperature=0.5, seed=length)
    with pytest.raises(AssertionError):
        draw(max_new_tokens=17)


def test_the_loop_over_tokens_copies_no_keys_and_values():
    model, state = prepare("slide")
    logits, point, current = decoding.read_blocks(model, state, TOKENS, "tokens")
    carried = decoding.start_in_block(model, point, current)
    sampling = Sampling(jax.random.key(0), jnp.float32(1), None, None)
    progress = (jnp.int32(0), jnp.zeros((BATCH, 16), jnp.int32), logits, carried)
    program = decoding._decode.lower(model, sampling, progress, jnp.int32(16)).compile()
    sizes = ",".join(map(str, carried.rings[0].keys.shape))
    text = program.as_text()
    assert re.search(rf"= f32\[{sizes}\]\S* (fusion|dynamic-update-slice)\(", text)
    assert not re.search(rf"= f32\[{sizes}\]\S* copy\(", text)


# The filters and the draw, without a model.


@pytest.mark.parametrize("top_k", [1, 2, VOCABULARY - 1, VOCABULARY, 1000])
def test_top_k_keeps_the_k_largest(top_k):
    kept = np.asarray(keep_top_k(LOGITS, jnp.int32(top_k)))
    for before, after in zip(np.asarray(LOGITS), kept, strict=True):
        largest = np.argsort(before)[-top_k:]
        expected = np.full(VOCABULARY, -np.inf)
        expected[largest] = before[largest]
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(top_p):
    kept = np.asarray(keep_top_p(LOGITS, jnp.float32(top_p)))
    for before, after in zip(np.asarray(LOGITS, np.float64), kept, strict=True):
        probabilities = np.exp(before) / np.sum(np.exp(before))
        order = np.argsort(-before)
        reached = np.cumsum(probabilities[order]) >= top_p * (1 - 1e-12)
        number = np.argmax(reached) + 1 if reached.any() else VOCABULARY
        assert set(np.flatnonzero(np.isfinite(after))) == set(order[:number])
        np.testing.assert_array_equal(after[order[:number]], before[order[:number]])


@pytest.mark.parametrize("min_p", [1e-6, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_has_that_share_of_the_largest_probability(min_p):
    kept = np.asarray(keep_min_p(LOGITS, jnp.float32(min_p)))
    probabilities = np.exp(np.asarray(LOGITS, np.float64))
    expected = probabilities >= min_p * probabilities.max(axis=1, keepdims=True) * (1 - 1e-6)
    assert_equal(kept, np.where(expected, LOGITS, -np.inf))


# The 99.9 % quantile of chi-square, by degrees of freedom.
LIMITS = {2: 13.82, 3: 16.27, 10: 29.59}


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, None, None), (0.5, None, None), (2.0, 4, None), (2, 7, 0.6)]
)
def test_tokens_come_as_often_as_their_probability_says(temperature, top_k, top_p):
    count, logits = 20_000, LOGITS[:1]
    sampling = Sampling(
        jax.random.key(0),
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(top_k),
        None if top_p is None else jnp.float32(top_p),
    )
    drawn = sample(jnp.tile(logits, (count, 1)), sampling, jnp.int32(7))
    observed = np.bincount(np.asarray(drawn), minlength=VOCABULARY)
    odds = np.exp(np.asarray(logits[0], np.float64) / temperature)
    order = np.argsort(-odds)
    odds[order[top_k:] if top_k else []] = 0
    if top_p:
        before = np.cumsum(odds[order] / odds.sum()) - odds[order] / odds.sum()
        odds[order[before >= top_p]] = 0
    expected = count * odds / odds.sum()
    possible = expected > 0
    assert observed[~possible].sum() == 0
    chi_square = np.sum((observed - expected)[possible] ** 2 / expected[possible])
    assert chi_square < LIMITS[possible.sum() - 1]


def test_every_token_of_a_text_is_drawn_with_a_key_of_its_own():
    sampling = Sampling(jax.random.key(0), jnp.float32(1), None, None)
    logits = jnp.zeros((1, 1000))
    drawn = [int(sample(logits, sampling, jnp.int32(count))[0]) for count in range(20)]
    assert len(set(drawn)) > 15


WRONG = {
    "no new tokens": ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be .* 1, not 0"),
    "temperature": ({"temperature": -0.1}, ValueError, "temperature must be .* not -0.1"),
    "top_k": ({"top_k": 0}, ValueError, "top_k must be a whole number of at least 1, not 0"),
    "top_p 0": ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, not 0.0"),
    "top_p 2": ({"top_p": 2}, ValueError, "top_p must be above 0 and at most 1, not 2"),
    "min_p": ({"min_p": 0}, ValueError, "min_p must be above 0 and at most 1, not 0"),
    "stop token": ({"stop_tokens": [3, 11]}, ValueError, "stop_tokens: token id 11 is outside"),
    "no length": ({"lengths": [1, 0]}, ValueError, "lengths must be from 1 to 1, not 0"),
    "one length": ({"lengths": [1]}, ValueError, r"lengths has shape \(1,\), but \[2\]"),
    "no prompt": ({"tokens": TOKENS[:, :0]}, ValueError, "prompt must have at least one token"),
    "one row": ({"tokens": TOKENS[0]}, ValueError, r"prompt has shape \(16,\), but \[B, P\]"),
    "floats": ({"tokens": np.ones((2, 3))}, TypeError, "prompt must hold integer .* not float64"),
    "text": ({"tokens": [["once"]]}, TypeError, "prompt must hold integer values"),
    "too large": ({"tokens": TOKENS + 1}, ValueError, "token id 11 is outside the vocab.* of 11"),
    "negative": ({"tokens": TOKENS - 1}, ValueError, "token id -1 is outside the vocabulary"),
    "rows": ({"rows": 1}, ValueError, r"state.cache.keys has shape \(3, 1, 4.*\[3, 2, 4"),
}


@pytest.mark.parametrize("options, error, words", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        draw(**options)


def test_a_state_must_be_one():
    model, state = prepare()
    with pytest.raises(TypeError, match="state must be a ModelState or GenerationState"):
        generate(model, tuple(state), TOKENS)
