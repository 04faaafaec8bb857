"""The loss when the recurrent states are not what they would be.

Several readings of the same documents go on side by side, block by block, each with its own keys
and values; they differ in the recurrent states that enter a block. Only the states are changed, so
a model without recurrent layers has the same loss in all of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.data import Batch, TokenizedCorpus
from block_recurrent.lab.analysis.token_losses import (
    Progress,
    empty_losses,
    nats_of,
    put_losses,
    read_documents,
)
from block_recurrent.model.state import ModelState, concatenate, reset

NORMAL, CLEARED, NEVER, FROZEN, SWAPPED = "normal", "cleared", "never", "frozen", "swapped"
READINGS = {
    NORMAL: "carried",
    CLEARED: "cleared at every segment",
    NEVER: "cleared at every block",
    FROZEN: "frozen",
    SWAPPED: "of another document",
}
Streams = dict[str, ModelState]


def with_states(state: ModelState, states: Array, where: Array | np.ndarray) -> ModelState:
    """`state` with the recurrent `states` [R, B, S, E] in the lanes `where` [B]."""
    chosen = jnp.asarray(where)[:, None, None]
    return state._replace(recurrent=jnp.where(chosen, states, state.recurrent))


def entering(
    streams: Streams,
    initial: ModelState,
    begins: Array | np.ndarray,
    offset: Array,
    segment_length: int,
) -> Streams:
    """What enters a block in each reading, from what has come out of the block before."""
    begun = {name: reset(state, initial, begins, batch_axis=1) for name, state in streams.items()}
    at_segment = offset % segment_length == 0
    others = jnp.roll(begun[NORMAL].recurrent, 1, axis=1)  # those of the lane before
    return begun | {
        CLEARED: with_states(begun[CLEARED], initial.recurrent, at_segment),
        NEVER: with_states(begun[NEVER], initial.recurrent, jnp.ones_like(begins)),
        SWAPPED: with_states(begun[SWAPPED], others, jnp.logical_not(begins)),
    }


@functools.partial(jax.jit, donate_argnums=1, static_argnames="segment_length")
def read_block(
    model: Any,
    streams: Streams,
    batch: Batch,
    offset: Array,
    freeze_at: Array,
    *,
    segment_length: int,
) -> tuple[Streams, dict[str, Array]]:
    """Reads one block [B, W] of every lane in all readings, as one batch.

    Args:
      model: a language model with a `ModelState`.
      streams: what came out of the block before in each reading.
      batch: the block.
      offset: how many tokens of its document each lane has read, [B].
      freeze_at: position, in tokens.
      segment_length: tokens between two clearings.

    Returns:
      What comes out of the block in each reading, and the losses of its targets, [B, W].
    """
    lanes = len(batch.inputs)
    names = list(streams)
    initial = model.initial_state(lanes)
    before = entering(streams, initial, batch.start_of_document, offset, segment_length)
    features, after = model.features(
        jnp.tile(batch.inputs, (len(names), 1)),
        concatenate([before[name] for name in names], axis=1),
    )
    nats = nats_of(model, features, jnp.tile(batch.targets, (len(names), 1)))
    own = {name: slice(n * lanes, (n + 1) * lanes) for n, name in enumerate(names)}
    out = {name: jax.tree.map(lambda x, s=own[name]: x[:, s], after) for name in names}
    out[FROZEN] = with_states(out[FROZEN], before[FROZEN].recurrent, offset >= freeze_at)
    # A document that has ended keeps its states, for another to be read with.
    ended = jnp.logical_not(batch.mask.any(1))
    out[NORMAL] = with_states(out[NORMAL], before[NORMAL].recurrent, ended)
    return out, {name: nats[own[name]] for name in names}


def intervened_losses(
    model: Any,
    corpus: TokenizedCorpus,
    *,
    lanes: int,
    segment_length: int,
    freeze_at: int,
    progress: Progress = lambda share: None,
) -> dict[str, list[np.ndarray]]:
    """The loss of every token in each of READINGS.

    - cleared: the initial states enter the first block of every segment;
    - never: they enter every block, as if no update were ever applied;
    - frozen: updates of blocks that begin at position `freeze_at` or later are not applied;
    - swapped: every block but a document's first is read with the states that the document in the
      lane before has at that moment in the normal reading.

    Args:
      model: a language model with a `ModelState`.
      corpus: the documents.
      lanes: how many are read at once; swapping needs at least two.
      segment_length: tokens between two clearings, a multiple of the window.
      freeze_at: position, in tokens.
      progress: called with the share of the tokens that have been read.

    Returns:
      By name of the reading, for each document [n] float32.
    """
    streams = {name: model.initial_state(lanes) for name in READINGS}
    losses = {name: empty_losses(corpus) for name in READINGS}
    for standing, batch in read_documents(model, corpus, lanes, model.config.window, progress):
        offset = np.array([lane.offset if lane else 0 for lane in standing], np.int32)
        streams, nats = read_block(
            model, streams, batch, offset, np.int32(freeze_at), segment_length=segment_length
        )
        for name, values in jax.device_get(nats).items():
            put_losses(losses[name], standing, values)
    return losses
