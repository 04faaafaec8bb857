"""Sampling token by token, on the same parameters and the same state as training.

The recurrent state advances once every W tokens. Inside a block, the keys and values of its tokens
so far wait beside those of the block before; a token's W visible positions are always one
contiguous slice of the two, so that every token costs the same however long the text is.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model.checks import check_point, check_sampling, check_token_ids
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.state import KeysValues, ModelState, add_axis, concatenate, take


class GenerationState(NamedTuple):
    """Any point of a document, also inside a block.

    Attributes:
      block_start: the model's state as it entered the block.
      tokens: [B, W] int32, the block's tokens so far, zeros after them.
      length: how many tokens of the block have been read, 0 to W - 1.
    """

    block_start: ModelState
    tokens: Array
    length: int


class Sampling(NamedTuple):
    """How a token is drawn from the logits; None leaves a filter out.

    Attributes:
      key: each token of each row has a key of its own derived from it.
      temperature: float32 scalar, divides the logits; 0 takes the most likely token.
      top_k: int32 scalar, only the k most likely tokens.
      top_p: float32 scalar, only the fewest tokens that have this probability together.
    """

    key: Array
    temperature: Array
    top_k: Array | None
    top_p: Array | None


class Decoding(NamedTuple):
    """Carried from one token to the next.

    Attributes:
      token_context: keys and values of the block before and of the present one, [L, B, 2W, H, D].
      states: as they entered the block, [R, B, S, E] float32.
      state_contexts: of each recurrent layer, keys and values of its states, [B, 1, S, H, D].
      offset: int32 scalar, tokens of the block read so far, 0 to W - 1.
    """

    token_context: KeysValues
    states: Array
    state_contexts: list[KeysValues]
    offset: Array


def prefill(
    model: LanguageModel, state: ModelState | GenerationState, tokens: ArrayLike
) -> tuple[Array, GenerationState]:
    """Reads any number of tokens, block by block in parallel.

    Args:
      model: the language model.
      state: a model's state at a block's end, or a point inside a block.
      tokens: [B, P] integers in [0, V), P >= 1; at a document's start the first one is the
        tokenizer's beginning-of-document token.

    Returns:
      Logits [B, V] float32 for the token after the last one, and the point reached.

    Raises:
      TypeError, ValueError: tokens that are no integers in range, or do not fit the state.
    """
    logits, point, _ = _read(model, state, tokens, "tokens")
    return logits, point


def generate(
    model: LanguageModel,
    state: ModelState | GenerationState,
    prompt: ArrayLike,
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    callback: Callable[[np.ndarray], None] | None = None,
) -> Array:
    """Continues a prompt, from a document's start or from any point of a document.

    To go on afterwards, `prefill` prompt and result.

    Args:
      model: the language model.
      state: `model.initial_state(B)` at a document's start, a state from reading whole blocks, or
        a point inside a block from `prefill`.
      prompt: [B, P] integers in [0, V), P >= 1, as for `prefill`.
      max_new_tokens: how many tokens to add.
      temperature: 0 always takes the most likely token.
      top_k: only among the k most likely tokens.
      top_p: only among the fewest tokens that together have this probability.
      seed: the same seed gives the same text; rows of a batch draw independently.
      callback: called with each new token of all rows, [B] int32, as soon as it is there.

    Returns:
      The new tokens, [B, max_new_tokens] int32.

    Raises:
      TypeError, ValueError: arguments that are out of range or do not fit together.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    _check_model(model)
    sampling = Sampling(
        jax.random.key(seed),
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(min(top_k, model.config.vocab_size)),
        None if top_p is None else jnp.float32(top_p),
    )
    logits, point, current = _read(model, state, prompt, "prompt")
    decoding = start_decoding(model, point, current)
    # A power of two, so that one compiled loop serves many lengths.
    capacity = 1 << (max_new_tokens - 1).bit_length()
    new_tokens = jnp.zeros((logits.shape[0], capacity), jnp.int32)
    progress = (jnp.int32(0), new_tokens, logits, decoding)
    stops = [max_new_tokens] if callback is None else range(1, max_new_tokens + 1)
    for stop in stops:
        progress = _decode(model, sampling, progress, jnp.int32(stop))
        if callback is not None:
            callback(np.asarray(progress[1][:, stop - 1]))
    return progress[1][:, :max_new_tokens]


@jax.jit
def _read_block(
    model: LanguageModel, tokens: Array, state: ModelState, last: Array
) -> tuple[Array, ModelState]:
    """One block [B, W]: logits [B, V] after the token at position `last`, and the next state."""
    logits, state = model(tokens, state)
    return jax.lax.dynamic_index_in_dim(logits, last, axis=1, keepdims=False), state


def _read(
    model: LanguageModel, state: ModelState | GenerationState, tokens: ArrayLike, name: str
) -> tuple[Array, GenerationState, KeysValues]:
    """As `prefill`, and the keys and values of the block begun, [L, B, W, H, D]."""
    _check_model(model)
    window = model.config.window
    point = as_generation_state(model, state)
    tokens = check_token_ids(name, tokens, model.config.vocab_size)
    check_point(model.config, point, tokens.shape[0])
    tokens = jnp.concatenate([point.tokens[:, : point.length], tokens], axis=1)
    block_start = point.block_start
    whole, length = divmod(tokens.shape[1], window)
    logits = None
    for block in range(whole):
        piece = tokens[:, block * window : (block + 1) * window]
        logits, block_start = _read_block(model, piece, block_start, jnp.int32(window - 1))
    rest = jnp.pad(tokens[:, whole * window :], ((0, 0), (0, window - length)))
    current = block_start.cache
    if length:
        # What follows a token cannot change it, so the padding is harmless.
        logits, ahead = _read_block(model, rest, block_start, jnp.int32(length - 1))
        current = ahead.cache
    assert logits is not None
    return logits, GenerationState(block_start, rest, length), current


def _check_model(model: LanguageModel) -> None:
    if not isinstance(model, LanguageModel):
        raise TypeError(f"model must be a LanguageModel, not {type(model).__name__}")


def as_generation_state(
    model: LanguageModel, state: ModelState | GenerationState
) -> GenerationState:
    """A state between two blocks as a point of a document; a point stays as it is."""
    if isinstance(state, GenerationState):
        return state
    if not isinstance(state, ModelState):
        raise TypeError(
            f"state must be a ModelState or GenerationState, not {type(state).__name__}"
        )
    return GenerationState(state, jnp.zeros((state.batch_size, model.config.window), jnp.int32), 0)


def start_decoding(model: LanguageModel, point: GenerationState, current: KeysValues) -> Decoding:
    """Prepares decoding at `point`, `current` being its block's keys and values [L, B, W, H, D]."""
    start = point.block_start
    token_context = concatenate([start.cache, current], axis=2)
    # A copy: the decoding loop takes over the memory of what it is given.
    states = jnp.copy(start.recurrent)
    contexts = _project_states(model, states)
    return Decoding(token_context, states, contexts, jnp.int32(point.length))


def _project_states(model: LanguageModel, states: Array) -> list[KeysValues]:
    """Of each recurrent layer, keys and values of its states, [B, 1, S, H, D]."""
    pairs = zip(model.stack.cells, states, strict=True)
    return [add_axis(cell.project(own).context, 1) for cell, own in pairs]


def decode_token(model: LanguageModel, token: Array, decoding: Decoding) -> tuple[Array, Decoding]:
    """Reads one token [B] int32: logits [B, V] for the next one, and what is carried on."""
    window = model.config.window
    offset = decoding.offset
    visible = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, offset, window, axis=2), decoding.token_context
    )
    x = model.embed(token[:, None])
    x, own = model.stack.read_token(x, visible, decoding.state_contexts)
    token_context = jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, window + offset, axis=2),
        decoding.token_context,
        own,
    )
    decoding = decoding._replace(token_context=token_context, offset=offset + 1)
    decoding = jax.lax.cond(
        offset + 1 == window, lambda d: _next_block(model, d), lambda d: d, decoding
    )
    return model.logits(model.normalize(x))[:, 0], decoding


def _next_block(model: LanguageModel, decoding: Decoding) -> Decoding:
    """At a block's end: the states advance, and the present block becomes the previous one."""
    layers = zip(model.stack.cells, decoding.states, model.config.recurrent_indices, strict=True)
    updated = [
        cell.horizontal(own, take(decoding.token_context, layer)) for cell, own, layer in layers
    ]
    states = jnp.stack(updated) if updated else decoding.states
    roll = functools.partial(jnp.roll, shift=-model.config.window, axis=2)
    token_context = jax.tree.map(roll, decoding.token_context)
    return Decoding(token_context, states, _project_states(model, states), jnp.int32(0))


@jax.jit(donate_argnums=2)
def _decode(model, sampling: Sampling, progress, stop: Array):
    """The loop over tokens: samples and reads until `stop` tokens are there."""

    def body(progress):
        count, new_tokens, logits, decoding = progress
        token = sample(logits, sampling, count)
        new_tokens = jax.lax.dynamic_update_slice_in_dim(new_tokens, token[:, None], count, axis=1)
        logits, decoding = decode_token(model, token, decoding)
        return count + 1, new_tokens, logits, decoding

    return jax.lax.while_loop(lambda progress: progress[0] < stop, body, progress)


def sample(logits: Array, sampling: Sampling, count: Array) -> Array:
    """Draws one token a row: logits [B, V] -> [B] int32; `count` tokens were drawn before."""
    scaled = logits / jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    kept = keep_top_p(keep_top_k(scaled, sampling.top_k), sampling.top_p)
    keys = jax.random.split(jax.random.fold_in(sampling.key, count), logits.shape[0])
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    greedy = jnp.argmax(logits, axis=-1)
    return jnp.where(sampling.temperature > 0, drawn, greedy).astype(jnp.int32)


def keep_top_k(logits: Array, top_k: Array | None) -> Array:
    """Minus infinity for all but the `top_k` largest logits of each row [B, V]."""
    if top_k is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    place = jnp.minimum(top_k, logits.shape[-1]) - 1
    smallest = jax.lax.dynamic_index_in_dim(descending, place, axis=-1)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: Array, top_p: Array | None) -> Array:
    """Minus infinity for all but the fewest tokens of a row whose probability reaches `top_p`."""
    if top_p is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
