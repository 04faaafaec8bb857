"""Reading any number of tokens, and generating token by token, with the parameters of training.

The block-recurrent model updates its states once every W tokens. While it generates, the last W
keys and values of each layer are a ring, in which token i of a block has index i: a token attends
to the whole ring, and its own keys and values then replace those that the next token does not see.
Every token costs the same however long the text is.

Baselines generate by calls of one token. Transformer-XL then generates as its paper evaluates: each
token sees the `memory` tokens before it, which is more than the first ones of a training segment
see after a document's start and less than the last ones see. The vanilla Transformer sees its
segment so far, the LSTM its state.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Int, Int32

from block_recurrent.model import checks
from block_recurrent.model.array_types import (
    AnyArray,
    Index,
    Lengths,
    Token,
    TokenLogits,
)
from block_recurrent.model.checks import check_sampling
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.protocol import Baseline, Model
from block_recurrent.model.sampling import NONE, Sampling, sample
from block_recurrent.model.state import (
    KeysValues,
    ModelState,
    Tree,
    add_axis,
    concatenate,
    reset,
    take,
)


class GenerationState(NamedTuple):
    """Any point of a document, also inside a block.

    Attributes:
      block_start: the model's state as it entered the block.
      tokens: the block's tokens so far, zeros after them.
      length: how many tokens of the block have been read, 0 to W - 1; [B] where rows differ.
    """

    block_start: ModelState
    tokens: Int32[AnyArray, "B W"]
    length: int | Int[np.ndarray, "B"]


class Decoder(NamedTuple):
    """How a kind of model reads: a prompt, then token by token."""

    # (model, state, tokens, their name, lengths) -> logits after the last, point, for `start`
    read: Callable[..., tuple[TokenLogits, Any, Any]]
    start: Callable[..., Any]  # (model, point, what it needs) -> what is carried
    decode: Callable[..., tuple[TokenLogits, Any]]  # (model, token, carried) -> logits, carried


def decoder_of(model: Model) -> Decoder:
    """The decoder of a model.

    Raises:
      TypeError: it is no language model.
    """
    if isinstance(model, LanguageModel):
        return BY_BLOCKS
    if hasattr(model, "next_length"):
        return BY_CALLS
    raise TypeError(f"model must be a LanguageModel, not {type(model).__name__}")


def prefill(
    model: Model, state: Any, tokens: ArrayLike, lengths: ArrayLike | None = None
) -> tuple[TokenLogits, Any]:
    """Reads any number of tokens, block by block in parallel.

    Baselines read them in calls of several lengths, the last token in a call of its own.

    Args:
      model: the language model.
      state: a model's state at a block's end, or a point inside a block; of a baseline its state.
      tokens: [B, P] integers in [0, V), P >= 1; at a document's start the first one is the
        tokenizer's beginning-of-document token.
      lengths: [B] integers from 1 to P, how many tokens of each row are real; the others,
        padding, come after them. Each row is read as if alone. None for rows without padding.

    Returns:
      Logits for the token after the last one, and the point reached: a `GenerationState`, or a
      baseline's state.

    Raises:
      TypeError, ValueError: tokens or lengths that are no integers in range, or do not fit the
        state.
    """
    logits, point, _ = decoder_of(model).read(model, state, tokens, "tokens", lengths)
    return logits, point


def generate(
    model: Model,
    state: Any,
    prompt: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    callback: Callable[[np.ndarray], object] | None = None,
) -> Int32[Array, "B P"]:
    """Continues a prompt; to go on afterwards, `prefill` prompt and result.

    Args:
      model: the language model.
      state: `model.initial_state(B)` at a document's start, a state from reading whole blocks, or
        a point inside a block from `prefill`; of a baseline any state.
      prompt: [B, P] integers in [0, V), P >= 1, as for `prefill`.
      lengths: of the rows of the prompt, as for `prefill`.
      max_new_tokens: how many tokens to add.
      temperature: 0 always takes the most likely token.
      top_k: only among the k most likely tokens.
      top_p: only among the fewest tokens that together have this probability.
      min_p: only among tokens with at least this share of the largest probability.
      stop_tokens: a row that draws one of them ends, and repeats it until all rows have ended;
        `row_lengths` says where.
      seed: the same seed gives the same text; rows of a batch draw independently.
      callback: called with each new token of all rows, [B] int32, as soon as it is there; if it
        returns True, that token is the last.

    Returns:
      The new tokens, [B, max_new_tokens], or fewer if all rows have ended.

    Raises:
      TypeError, ValueError: arguments that are out of range or do not fit together.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, min_p, seed)
    decoder, vocab_size = decoder_of(model), model.config.vocab_size
    sampling = Sampling(
        jax.random.key(seed),
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(min(top_k, vocab_size)),
        None if top_p is None else jnp.float32(top_p),
        None if min_p is None else jnp.float32(min_p),
        _check_stops(stop_tokens, vocab_size),
    )
    logits, point, rest = decoder.read(model, state, prompt, "prompt", lengths)
    capacity = 1 << (max_new_tokens - 1).bit_length()  # one compiled loop serves many lengths
    new_tokens = jnp.zeros((logits.shape[0], capacity), jnp.int32)
    progress = (jnp.int32(0), new_tokens, logits, decoder.start(model, point, rest))
    stops = [max_new_tokens] if callback is None else range(1, max_new_tokens + 1)
    for stop in stops:
        progress = _decode(model, sampling, progress, jnp.int32(stop))
        if callback is None:
            continue
        if progress[0] < stop or callback(np.asarray(progress[1][:, stop - 1])):
            break
    return progress[1][:, : int(progress[0])]


def row_lengths(
    new_tokens: Int32[AnyArray, "B P"], stop_tokens: Sequence[int]
) -> Int[np.ndarray, "B"]:
    """How many tokens each row of `generate`'s result has, with the stop token that ended it."""
    ended = np.isin(np.asarray(new_tokens), np.asarray(stop_tokens, np.int32))
    return np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, ended.shape[1])


@jax.jit(donate_argnums=2)
def _decode(model, sampling: Sampling, progress, stop: Index):
    """The loop over tokens: samples and reads until `stop` tokens are there."""
    decode = decoder_of(model).decode

    def body(progress):
        count, new_tokens, logits, carried = progress
        token = sample(logits, sampling, count)
        newest, ended = _newest(progress, sampling)
        token = jnp.where(ended, newest, token)
        new_tokens = jax.lax.dynamic_update_slice_in_dim(new_tokens, token[:, None], count, axis=1)
        logits, carried = decode(model, token, carried)
        return count + 1, new_tokens, logits, carried

    def goes_on(progress):
        return (progress[0] < stop) & ~jnp.all(_newest(progress, sampling)[1])

    return jax.lax.while_loop(goes_on, body, progress)


def _newest(progress, sampling: Sampling) -> tuple[Token, Bool[Array, "B"]]:
    """The token that each row drew last, and whether it ended the row."""
    count, new_tokens, *_ = progress
    newest = jax.lax.dynamic_index_in_dim(new_tokens, count - 1, axis=1, keepdims=False)
    return newest, (count > 0) & jnp.isin(newest, sampling.stop_tokens)


def _check_stops(stop_tokens: Sequence[int], vocab_size: int) -> Int32[AnyArray, "n"]:
    if len(stop_tokens) == 0:
        return NONE
    return checks.check_token_ids("stop_tokens", np.asarray([stop_tokens]), vocab_size)[0]


# Rows of several lengths.


def _split_rows(
    name: str, tokens: ArrayLike, lengths: ArrayLike | None, vocab_size: int
) -> list[Int32[np.ndarray, "n"]]:
    """The tokens of each row without its padding; raises unless each row has some."""
    rows = np.asarray(checks.check_token_ids(name, tokens, vocab_size))
    if lengths is None:
        return list(rows)
    lengths = np.asarray(lengths)
    checks.check_lengths(lengths, rows.shape, shortest=1)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def pad_rows(rows: Sequence[np.ndarray], width: int) -> Int32[np.ndarray, "B width"]:
    """Rows of several lengths as one array, with zeros after each."""
    padded = np.zeros((len(rows), width), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


# The block-recurrent model, by blocks.


class Decoding(NamedTuple):
    """Carried from one token to the next.

    Attributes:
      rings: of each layer, keys and values of the last W tokens, [B, H, D, W]: positions last, the
        layout for the products of attention.
      newest: of each layer, the last token's keys and values, [B, H, D, 1]. They enter the ring
        before the next token is read. If they entered it after this one was, XLA would copy it.
      preceding: of each recurrent layer, the ring as it was when the block began.
      states: as they entered the block.
      state_contexts: of each recurrent layer, keys and values of its states, [B, 1, H, D, S].
      offset: tokens of the block read so far, 0 to W.
    """

    rings: list[KeysValues]
    newest: list[KeysValues]
    preceding: list[KeysValues]
    states: Float32[Array, "R B S E"]
    state_contexts: list[KeysValues]
    offset: Index


class Reached(NamedTuple):
    """What has been reached after some blocks, row by row.

    Attributes:
      logits: after the row's last token.
      block_start: the state after its last whole block.
      current: keys and values of its last block, whole or not, [L, B, W, H, D].
    """

    logits: TokenLogits
    block_start: ModelState
    current: KeysValues


def read_blocks(
    model: LanguageModel,
    state: ModelState | GenerationState,
    tokens: ArrayLike,
    name: str,
    lengths: ArrayLike | None = None,
) -> tuple[TokenLogits, GenerationState, KeysValues]:
    """As `prefill`, and the keys and values of the last block, [L, B, W, H, D]."""
    window, point = model.config.window, state
    if isinstance(state, ModelState):
        point = GenerationState(state, jnp.zeros((state.batch_size, window), jnp.int32), 0)
    if not isinstance(point, GenerationState):
        kind = type(state).__name__
        raise TypeError(f"state must be a ModelState or GenerationState, not {kind}")
    rows = _split_rows(name, tokens, lengths, model.config.vocab_size)
    checks.check_state(model, point.block_start, len(rows))
    checks.check_array("tokens of the state", point.tokens, f"{len(rows)} {window}")
    before = np.asarray(point.length)
    if before.shape not in ((), (len(rows),)) or not np.isin(before, range(window)).all():
        raise ValueError(
            f"length of the state must be from 0 to {window - 1}, not {point.length!r}"
        )
    begun = zip(np.asarray(point.tokens), np.broadcast_to(before, len(rows)), strict=True)
    rows = [np.concatenate([old[:n], new]) for (old, n), new in zip(begun, rows, strict=True)]
    ends = np.array([len(row) for row in rows])
    blocks = -(-ends.max() // window)
    stream = pad_rows(rows, blocks * window)
    logits = jnp.zeros((len(rows), model.config.vocab_size), jnp.float32)
    reached = Reached(logits, point.block_start, point.block_start.cache)
    for block in range(blocks):
        begin = block * window
        counts = np.clip(ends - begin, 0, window)
        reached = _read_block(model, stream[:, begin : begin + window], reached, counts)
    length = ends % window
    rest = pad_rows([row[len(row) - n :] for row, n in zip(rows, length, strict=True)], window)
    same = np.all(length == length[0])
    point = GenerationState(reached.block_start, rest, int(length[0]) if same else length)
    return reached.logits, point, reached.current


@jax.jit
def _read_block(
    model: LanguageModel, tokens: Int32[Array, "B W"], reached: Reached, counts: Lengths
) -> Reached:
    """Reads one block, of which each row has `counts` tokens, 0 to W.

    Padding comes after the tokens, so that it cannot change them.
    """
    logits, after = model(tokens, reached.block_start)
    last = jnp.maximum(counts - 1, 0)[:, None, None]
    logits = jnp.take_along_axis(logits, last, axis=1)[:, 0]
    reads, ends = counts > 0, counts == model.config.window
    return Reached(
        jnp.where(reads[:, None], logits, reached.logits),
        reset(reached.block_start, after, ends, batch_axis=1),
        reset(reached.current, after.cache, reads, batch_axis=1),
    )


@jax.jit
def start_in_block(model: LanguageModel, point: GenerationState, current: KeysValues) -> Decoding:
    """Prepares decoding at `point`; `current` is what `read_blocks` returns.

    Where rows are at several places of their blocks, each is a batch of its own.
    """
    if jnp.ndim(point.length):
        start, tokens, length = point
        point = GenerationState(add_axis(start, 2), add_axis(tokens, 1), length)
        rows = GenerationState(1, 0, 0)  # type: ignore[arg-type]
        each = jax.vmap(partial(start_in_block, model), (rows, 1))
        return each(point, add_axis(current, 2))
    start, config = point.block_start, model.config
    read = jnp.expand_dims(jnp.arange(config.window), (0, 1, 3, 4)) < point.length
    last = jax.tree.map(lambda old, new: jnp.where(read, new, old), start.cache, current)
    rings = [_positions_last(take(last, layer)) for layer in range(config.num_layers)]
    preceding = [_positions_last(take(start.cache, layer)) for layer in config.recurrent_indices]
    newest = jax.tree.map(lambda ring: ring[..., point.length - 1, None], rings)
    # A copy, because the decoding loop donates the memory of what it is given.
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
    model: LanguageModel, token: Token, decoding: Decoding
) -> tuple[TokenLogits, Decoding]:
    """Reads one token: logits for the next one, and what is carried on."""
    if decoding.offset.ndim:
        each = jax.vmap(partial(decode_in_block, model))
        logits, decoding = each(token[:, None], decoding)
        return logits[:, 0], decoding
    # The newest keys and values replace the oldest ones in the rings.
    place = (decoding.offset - 1) % model.config.window
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=3)
    rings = jax.tree.map(put, decoding.rings, decoding.newest)
    decoding = _advance(model, decoding._replace(rings=rings))
    visible = _positions_first(decoding.rings)
    contexts = _positions_first(decoding.state_contexts)
    x = model.embed(token[:, None])
    x, own = model.stack.read_token(x, visible, decoding.offset, contexts)
    decoding = decoding._replace(newest=_positions_last(own), offset=decoding.offset + 1)
    return model.logits(model.normalize(x))[:, 0], decoding


def _advance(model: LanguageModel, decoding: Decoding) -> Decoding:
    """At a block's end, when its tokens fill the rings, updates the states.

    It is a loop of one iteration or none, which leaves in place what it does not change. XLA copies
    what comes through a branch.
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


BY_BLOCKS = Decoder(read_blocks, start_in_block, decode_in_block)


# Baselines, by calls.


def read_calls(
    model: Baseline, state: Any, tokens: ArrayLike, name: str, lengths: ArrayLike | None = None
) -> tuple[TokenLogits, Any, None]:
    """As `prefill`; the last token is read alone, as the tokens that are drawn will be."""
    rows = _split_rows(name, tokens, lengths, model.config.vocab_size)
    model.check_state(state, len(rows))
    begin, last = np.zeros(len(rows), np.int32), np.array([len(row) - 1 for row in rows])
    while np.any(begin < last):
        each = _next_lengths(model, state, last - begin)
        parts = zip(rows, begin, begin + each, strict=True)
        piece = pad_rows([row[first:end] for row, first, end in parts], each.max())
        _, state = _read_call(model, piece, state, None if np.all(each == each[0]) else each)
        begin = begin + each
    logits, state = _read_call(model, np.stack([row[-1:] for row in rows]), state)
    return logits, state, None


def _next_lengths(model: Baseline, state: Any, left: np.ndarray) -> np.ndarray:
    """How many of the tokens that are `left` of each row, [B], it would read next if alone."""
    if np.all(left == left[0]):
        return np.full_like(left, model.next_length(state, int(left[0])))
    rows = (jax.tree.map(lambda x, row=row: x[:, row : row + 1], state) for row in range(len(left)))
    pairs = zip(rows, map(int, left), strict=True)
    return np.array([model.next_length(row, number) if number else 0 for row, number in pairs])


@jax.jit
def _read_call(
    model: Baseline, tokens: Int32[Array, "B N"], state: Any, lengths: Lengths | None = None
) -> tuple[TokenLogits, Any]:
    """Logits after the last of the tokens, and the next state."""
    features, state = model.features(tokens, state, lengths=lengths)
    return model.logits(features[:, -1:])[:, 0], state


def start_from_call(model: Baseline, state: Any, rest: None) -> Any:
    """A copy of the state, because the decoding loop donates the memory of what it is given."""
    del model, rest
    return jax.tree.map(jnp.copy, state)


def decode_by_call(model: Baseline, token: Token, state: Any) -> tuple[TokenLogits, Any]:
    """Reads one token: logits for the next one, and the next state."""
    return _read_call(model, token[:, None], state)


BY_CALLS = Decoder(read_calls, start_from_call, decode_by_call)
