"""What a recurrent layer does while it reads one block.

Documents are read block by block (N = W), so that the states before and after a block are those
that are carried, and a layer's keys and values of the block are its cache afterwards. Everything
else is computed by the model's own layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.data import Batch
from block_recurrent.model.attention import reference
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.stack import split_state
from block_recurrent.model.state import (
    LayerState,
    ModelState,
    add_axis,
    concatenate_windows,
    reset,
    take,
)


class GateShares(NamedTuple):
    """Means over states, [B, E] for a gate's E units.

    Attributes:
      kept: what the old state is multiplied by, g or f.
      added: what the new value is multiplied by, 1 - g or i.
    """

    kept: Array
    added: Array


class Observed(NamedTuple):
    """Of one recurrent layer while it reads a block.

    Attributes:
      change: |s' - s| / |s| over all states together, [B].
      similarity: mean cosine between two different states as they enter the block, [B].
      later: mean cosine of each state, after the block, with itself in the kept states, [B].
      gates: of each gate.
      attention: probability that a token gives each state, summed over the tokens, [B, H, S].
      entropy: of these probabilities in nats, summed over the tokens, [B, H].
    """

    change: Array
    similarity: Array
    later: Array
    gates: list[GateShares]
    attention: Array
    entropy: Array


def relative_change(before: Array, after: Array) -> Array:
    """|s' - s| / |s|, [B, S, E] -> [B]."""

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.square(x).sum((-2, -1)))

    return norm(after - before) / norm(before)


def _directions(states: Array) -> Array:
    return states / jnp.linalg.norm(states, axis=-1, keepdims=True)


def mean_similarity(states: Array) -> Array:
    """Mean cosine between different ones of S states [B, S, E] -> [B]; 1 for a single one."""
    number = states.shape[-2]
    if number == 1:
        return jnp.ones(states.shape[:-2])
    together = jnp.square(_directions(states).sum(-2)).sum(-1)
    return (together - number) / (number * (number - 1))


def similarity_to(states: Array, others: Array) -> Array:
    """Mean over S of the cosine of each state with its counterpart, [B, S, E] twice -> [B]."""
    return (_directions(states) * _directions(others)).sum(-1).mean(-1)


def recurrent_inputs(model: Any, tokens: Array | np.ndarray, state: ModelState) -> list[Array]:
    """What each recurrent layer reads of one block [B, W], [B, W, E] each."""
    x, config, inputs = model.embed(tokens), model.config, []
    context = None
    if config.feedback:
        context = add_axis(model.stack.cells[-1].project(state.recurrent[-1]).context, 1)
    for part, own in zip(model.stack.parts, split_state(config, state), strict=True):
        inputs += [x] * len(part.cells)
        x, _ = part(x, own, context)
    return inputs


def observe_layer(
    cell: RecurrentCell,
    x: Array,
    mask: Array,
    before: LayerState,
    after: LayerState,
    kept: Array,
) -> Observed:
    """Observes one layer.

    Args:
      cell: of the layer.
      x: what the layer reads, [B, W, E].
      mask: [B, W], the tokens that count.
      before: cache [B, W, H, D] and states [B, S, E] of this layer before the block.
      after: the same after it.
      kept: states kept for comparison, [B, S, E].
    """
    projections = cell.project(before.recurrent)
    heads = cell.attend(projections, concatenate_windows(before.cache, after.cache))
    gates = []
    for gate, inputs in cell.wiring.gate_inputs(before.recurrent, heads):
        shares = [jnp.broadcast_to(y, before.recurrent.shape) for y in gate.shares(inputs)]
        gates.append(GateShares(*(y.mean(1) for y in shares)))
    queries = cell.token_layer.project(x).state_queries
    assert queries is not None
    keys = projections.context.keys
    logits = jnp.einsum("bqhd,bshd->bhqs", queries, keys, preferred_element_type=jnp.float32)
    p = reference.probabilities(logits)
    entropy = -jnp.where(p > 0, p * jnp.log(p), 0.0).sum(-1)
    counted = mask[:, None].astype(p.dtype)
    return Observed(
        relative_change(before.recurrent, after.recurrent),
        mean_similarity(before.recurrent),
        similarity_to(after.recurrent, kept),
        gates,
        jnp.einsum("bhqs,bhq->bhs", p, jnp.broadcast_to(counted, entropy.shape)),
        (entropy * counted).sum(-1),
    )


@jax.jit
def observe_block(
    model: Any, carried: ModelState, batch: Batch, kept: Array
) -> tuple[ModelState, list[Observed]]:
    """Reads one block of every lane: the next state, and what each recurrent layer did.

    Args:
      model: a language model with recurrent layers.
      carried: as it enters the block.
      batch: a block, N = W.
      kept: states kept for comparison, [R, B, S, E].
    """
    initial = model.initial_state(len(batch.inputs))
    before = reset(carried, initial, batch.start_of_document, batch_axis=1)
    _, after = model.features(batch.inputs, before)
    inputs = recurrent_inputs(model, batch.inputs, before)
    mask, found = jnp.asarray(batch.mask), []
    for number, layer in enumerate(model.config.recurrent_indices):
        entered, left = (
            LayerState(take(state.cache, layer), state.recurrent[number])
            for state in (before, after)
        )
        cell = model.stack.cells[number]
        found.append(observe_layer(cell, inputs[number], mask, entered, left, kept[number]))
    return after, found
