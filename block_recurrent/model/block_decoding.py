"""Reading any number of tokens, and token by token, with the block-recurrent model.

The recurrent state advances once every W tokens. Inside a block, the keys and values of its tokens
so far wait beside those of the block before; a token's W visible positions are always one
contiguous slice of the two, so that every token costs the same however long the text is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model.checks import check_point, check_token_ids
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
