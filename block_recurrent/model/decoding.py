"""Reading any number of tokens and generating token by token, on the parameters of training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model.checks import check_point, check_sampling, check_token_ids
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.protocol import Baseline, Model
from block_recurrent.model.state import (
    KeysValues,
    ModelState,
    Tree,
    add_axis,
    concatenate,
    take,
)


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


class Decoding(NamedTuple):
    """Carried from one token to the next.

    Attributes:
      rings: of each layer, keys and values of the last W tokens, [B, H, D, W]: positions last, as
        the products of attention take them.
      newest: of each layer, the last token's, [B, H, D, 1], which its ring is to take up. That is
        done before the next token is read, not after this one was: then XLA writes in place.
      preceding: of each recurrent layer, the ring as it was when the block began.
      states: as they entered the block, [R, B, S, E] float32.
      state_contexts: of each recurrent layer, keys and values of its states, [B, 1, H, D, S].
      offset: int32 scalar, tokens of the block read so far, 0 to W.
    """

    rings: list[KeysValues]
    newest: list[KeysValues]
    preceding: list[KeysValues]
    states: Array
    state_contexts: list[KeysValues]
    offset: Array


@jax.jit
def _read_block(
    model: LanguageModel, tokens: Array, state: ModelState, last: Array
) -> tuple[Array, ModelState]:
    """One block [B, W]: logits [B, V] after the token at position `last`, and the next state."""
    logits, state = model(tokens, state)
    return jax.lax.dynamic_index_in_dim(logits, last, axis=1, keepdims=False), state


def read_blocks(
    model: LanguageModel, state: ModelState | GenerationState, tokens: ArrayLike, name: str
) -> tuple[Array, GenerationState, KeysValues]:
    """As `prefill`, and the keys and values of the block begun, [L, B, W, H, D]."""
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


@jax.jit
def start_in_block(model: LanguageModel, point: GenerationState, current: KeysValues) -> Decoding:
    """Prepares decoding at `point`, `current` being its block's keys and values [L, B, W, H, D]."""
    start, config = point.block_start, model.config
    read = jnp.arange(config.window)[:, None, None] < point.length
    last = jax.tree.map(lambda old, new: jnp.where(read, new, old), start.cache, current)
    rings = [_positions_last(take(last, layer)) for layer in range(config.num_layers)]
    preceding = [_positions_last(take(start.cache, layer)) for layer in config.recurrent_indices]
    newest = jax.tree.map(lambda ring: ring[..., point.length - 1, None], rings)
    # A copy: the decoding loop takes over the memory of what it is given.
    states = jnp.copy(start.recurrent)
    contexts = _project_states(model, states)
    return Decoding(rings, newest, preceding, states, contexts, jnp.int32(point.length))


def _positions_last(tree: Tree) -> Tree:
    """Keys and values [..., T, H, D] -> [..., H, D, T]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -3, -1), tree)


def _positions_first(tree: Tree) -> Tree:
    """Inverse of `_positions_last`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, -3), tree)


def _project_states(model: LanguageModel, states: Array) -> list[KeysValues]:
    """Of each recurrent layer, keys and values of its states, [B, 1, H, D, S]."""
    pairs = zip(model.stack.cells, states, strict=True)
    return [_positions_last(add_axis(cell.project(own).context, 1)) for cell, own in pairs]


def decode_in_block(
    model: LanguageModel, token: Array, decoding: Decoding
) -> tuple[Array, Decoding]:
    """Reads one token [B] int32: logits [B, V] for the next one, and what is carried on."""
    decoding = _advance(model, _take_up(decoding))
    visible = _positions_first(decoding.rings)
    contexts = _positions_first(decoding.state_contexts)
    x = model.embed(token[:, None])
    x, own = model.stack.read_token(x, visible, decoding.offset, contexts)
    decoding = decoding._replace(newest=_positions_last(own), offset=decoding.offset + 1)
    return model.logits(model.normalize(x))[:, 0], decoding


def _take_up(decoding: Decoding) -> Decoding:
    """Puts the newest token into the rings, where it takes the oldest one's place."""
    window = decoding.rings[0].keys.shape[-1]
    place = (decoding.offset - 1) % window
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=3)
    return decoding._replace(rings=jax.tree.map(put, decoding.rings, decoding.newest))


def _advance(model: LanguageModel, decoding: Decoding) -> Decoding:
    """At a block's end, when its tokens fill the rings, the states advance.

    As a loop of one turn or none, which leaves in place what it does not change: XLA copies what
    comes through a branch.
    """

    def next_block(decoding: Decoding) -> Decoding:
        filled = [decoding.rings[layer] for layer in model.config.recurrent_indices]
        pairs = zip(decoding.preceding, filled, strict=True)
        seen = [_positions_first(concatenate(pair, axis=3)) for pair in pairs]
        layers = zip(model.stack.cells, decoding.states, seen, strict=True)
        updated = [cell.horizontal(own, context) for cell, own, context in layers]
        states = jnp.stack(updated) if updated else decoding.states
        return decoding._replace(
            preceding=filled,
            states=states,
            state_contexts=_project_states(model, states),
            offset=jnp.int32(0),
        )

    window = model.config.window
    return jax.lax.while_loop(lambda found: found.offset == window, next_block, decoding)


@jax.jit
def _read_piece(model: Baseline, tokens: Array, state: Any) -> tuple[Array, Any]:
    """Tokens [B, N]: logits [B, V] after the last of them, and the next state."""
    features, state = model.features(tokens, state)
    return model.logits(features[:, -1:])[:, 0], state


def read_calls(
    model: Baseline, state: Any, tokens: ArrayLike, name: str
) -> tuple[Array, Any, None]:
    """As `prefill`; the last token is read alone, as those are that are drawn."""
    tokens = check_token_ids(name, tokens, model.config.vocab_size)
    model.check_state(state, tokens.shape[0])
    last = tokens.shape[1] - 1
    begin = 0
    while begin < last:
        end = begin + model.next_length(state, last - begin)
        _, state = _read_piece(model, tokens[:, begin:end], state)
        begin = end
    logits, state = _read_piece(model, tokens[:, last:], state)
    return logits, state, None


def start_from_call(model: Baseline, state: Any, rest: None) -> Any:
    """A copy of the state: the decoding loop takes over the memory of what it is given."""
    del model, rest
    return jax.tree.map(jnp.copy, state)


def decode_by_call(model: Baseline, token: Array, state: Any) -> tuple[Array, Any]:
    """Reads one token [B] int32: logits [B, V] for the next one, and the next state."""
    features, state = model.features(token[:, None], state)
    return model.logits(features)[:, 0], state


class Decoder(NamedTuple):
    """How a kind of model reads.

    Attributes:
      read: (model, state, tokens, their name) -> logits after the last token, the point reached,
        and what else is known of it.
      start: (model, point, what else is known) -> what is carried from one token to the next.
      decode: (model, token, carried) -> logits for the next token, and what is carried on.
    """

    read: Callable[..., tuple[Array, Any, Any]]
    start: Callable[..., Any]
    decode: Callable[..., tuple[Array, Any]]


BY_BLOCKS = Decoder(read_blocks, start_in_block, decode_in_block)
BY_TOKENS = Decoder(read_calls, start_from_call, decode_by_call)


def decoder_of(model: Model) -> Decoder:
    """The decoder of a model.

    Raises:
      TypeError: it is no language model.
    """
    if isinstance(model, LanguageModel):
        return BY_BLOCKS
    if hasattr(model, "next_length"):
        return BY_TOKENS
    raise TypeError(f"model must be a LanguageModel, not {type(model).__name__}")


def prefill(model: Model, state: Any, tokens: ArrayLike) -> tuple[Array, Any]:
    """Reads any number of tokens, block by block in parallel.

    Baselines read them in calls of several lengths, the last token in a call of its own.

    Args:
      model: the language model.
      state: a model's state at a block's end, or a point inside a block; of a baseline its state.
      tokens: [B, P] integers in [0, V), P >= 1; at a document's start the first one is the
        tokenizer's beginning-of-document token.

    Returns:
      Logits [B, V] float32 for the token after the last one, and the point reached, a
      `GenerationState` or a baseline's state.

    Raises:
      TypeError, ValueError: tokens that are no integers in range, or do not fit the state.
    """
    logits, point, _ = _read(model, state, tokens, "tokens")
    return logits, point


def generate(
    model: Model,
    state: Any,
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
        a point inside a block from `prefill`; of a baseline any state.
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
    decoder_of(model)  # raises for what is no model
    sampling = Sampling(
        jax.random.key(seed),
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(min(top_k, model.config.vocab_size)),
        None if top_p is None else jnp.float32(top_p),
    )
    logits, point, rest = _read(model, state, prompt, "prompt")
    decoding = start_decoding(model, point, rest)
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


def _read(model: Model, state: Any, tokens: ArrayLike, name: str) -> tuple[Array, Any, Any]:
    """As `prefill`, and what else is known of the point reached."""
    return decoder_of(model).read(model, state, tokens, name)


def start_decoding(model: Model, point: Any, rest: Any) -> Any:
    """Prepares decoding at a point, from what `_read` gives."""
    return decoder_of(model).start(model, point, rest)


def decode_token(model: Model, token: Array, decoding: Any) -> tuple[Array, Any]:
    """Reads one token [B] int32: logits [B, V] for the next one, and what is carried on."""
    return decoder_of(model).decode(model, token, decoding)


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
