"""Reading any number of tokens, and token by token, with the block-recurrent model.

The recurrent state advances once every W tokens. A layer's keys and values lie in a ring of W, that
of a block's token i at place i: what a token sees is always the whole ring, and its own keys and
values take the place of those that the next token does not see. Every token costs the same however
long the text is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model.checks import check_point, check_token_ids
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.state import (
    KeysValues,
    ModelState,
    Tree,
    add_axis,
    concatenate,
    take,
)


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


def read(
    model: LanguageModel, state: ModelState | GenerationState, tokens: ArrayLike, name: str
) -> tuple[Array, GenerationState, KeysValues]:
    """As `generation.prefill`, and the keys and values of the block begun, [L, B, W, H, D]."""
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
def start_decoding(model: LanguageModel, point: GenerationState, current: KeysValues) -> Decoding:
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


def decode_token(model: LanguageModel, token: Array, decoding: Decoding) -> tuple[Array, Decoding]:
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
