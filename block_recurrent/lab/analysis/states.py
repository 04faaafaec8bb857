"""The recurrent states while documents are read: how they change, and which ones tokens attend to.

Documents are read block by block (N = W). The states before and after a block are then those that
are carried, and a layer's keys and values of the block are its cache afterwards. The model's own
layers compute everything else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.data import Batch, TokenizedCorpus
from block_recurrent.lab.analysis.token_losses import Lanes, Progress, read_documents
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

LAGS = (1, 2, 4, 8, 16, 32, 64)  # blocks; states are kept for comparison every max(LAGS) blocks


class Observed(NamedTuple):
    """What R recurrent layers do while they read a block.

    Attributes:
      size: root mean square of the states' units as they enter the block, [R, B].
      change: |s' - s| / |s| over all states together, [R, B].
      similarity: mean cosine between two different states as they enter the block, [R, B].
      later: mean cosine of each state, after the block, with itself in the kept states, [R, B].
      gates: means over states for each of G gates with E units, [R, G, 2, B, E]: what the old state
        is multiplied by, g or f, and what the new value is multiplied by, 1 - g or i.
      attention: probability that a token gives each state, summed over all tokens, [R, H, S].
      entropy: of these probabilities in nats, summed over all tokens, [R, H].
    """

    size: Array
    change: Array
    similarity: Array
    later: Array
    gates: Array
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
    """Observes one layer; the figures of `Observed` without R.

    Args:
      cell: of the layer.
      x: what the layer reads, [B, W, E].
      mask: [B, W], the tokens that count.
      before: cache [B, W, H, D] and states [B, S, E] of this layer before the block.
      after: the same after it.
      kept: states kept for comparison, [B, S, E].
    """
    states = before.recurrent
    projections = cell.project(states)
    heads = cell.attend(projections, concatenate_windows(before.cache, after.cache))
    gates = [
        [jnp.broadcast_to(y, states.shape).mean(1) for y in gate.shares(inputs)]
        for gate, _, inputs in cell.wiring.gates(states, heads)
    ]
    queries = cell.token_layer.project(x).state_queries
    assert queries is not None
    keys = projections.context.keys
    logits = jnp.einsum("bqhd,bshd->bhqs", queries, keys, preferred_element_type=jnp.float32)
    p = jnp.where(mask[:, None, :, None], reference.probabilities(logits), 0.0)
    entropy = -jnp.where(p > 0, p * jnp.log(p), 0.0).sum((0, 2, 3))
    return Observed(
        jnp.sqrt(jnp.square(states).mean((-2, -1))),
        relative_change(states, after.recurrent),
        mean_similarity(states),
        similarity_to(after.recurrent, kept),
        jnp.array(gates),
        p.sum((0, 2)),
        entropy,
    )


@jax.jit
def observe_block(
    model: Any, carried: ModelState, batch: Batch, kept: Array
) -> tuple[ModelState, Observed]:
    """Reads one block of every lane: the next state, and what the recurrent layers did.

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
    return after, jax.tree.map(lambda *layers: jnp.stack(layers), *found)


class LayerStates(NamedTuple):
    """A recurrent layer's states over whole documents; n blocks, those of a full window.

    Attributes:
      position: of each block's first token in its document, [n].
      size: root mean square of the states' units as they enter each block, [n].
      change: |s' - s| / |s| of each block, [n].
      similarity: mean cosine between different states as they enter each block, [n].
      later: mean cosine of a state with itself as many blocks later as LAGS says, NaN without any.
      kept: mean of what each unit keeps, of each gate, [G, E].
      added: mean of what each unit takes of the new value, [G, E].
      attention: mean probability that a token gives each state, [H, S].
      effective: exp of the mean entropy of a token's probabilities, [H]: how many states a token
        attends to.
    """

    position: np.ndarray
    size: np.ndarray
    change: np.ndarray
    similarity: np.ndarray
    later: np.ndarray
    kept: np.ndarray
    added: np.ndarray
    attention: np.ndarray
    effective: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """exp of the entropy of the mean probabilities, [H]: how many states are attended to."""
        return effective_number(self.attention)


def effective_number(probabilities: np.ndarray) -> np.ndarray:
    """exp of the entropy of [..., S] probabilities: S if they are equal, 1 if one has all."""
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.exp(-(probabilities * logarithms).sum(-1))


def observe_states(
    model: Any,
    corpus: TokenizedCorpus,
    *,
    lanes: int,
    progress: Progress = lambda share: None,
) -> list[LayerStates]:
    """The states of each recurrent layer, lowest first, while documents are read.

    Args:
      model: a language model with recurrent layers.
      corpus: the documents.
      lanes: how many are read at once.
      progress: called with the share of the tokens that have been read.
    """
    carried = model.initial_state(lanes)
    positions, blocks = [], []  # of each whole block, and its size, change, similarity, [3, R]
    gates = attention = entropy = np.zeros(())
    later, pairs = np.zeros((len(carried.recurrent), len(LAGS))), np.zeros(len(LAGS))
    kept, kept_lanes, age = carried.recurrent, [None] * lanes, 0
    for standing, batch in read_documents(model, corpus, lanes, model.config.window, progress):
        carried, seen = observe_block(model, carried, batch, kept)
        seen = jax.device_get(seen)
        whole = np.asarray(batch.mask.all(1))
        positions += [
            lane.offset for lane, full in zip(standing, whole, strict=True) if lane and full
        ]
        blocks.append(np.array([seen.size, seen.change, seen.similarity])[:, :, whole])
        gates = gates + seen.gates[..., whole, :].sum(-2)
        attention, entropy = attention + seen.attention, entropy + seen.entropy
        age += 1
        if age in LAGS:
            rows = whole & _same_documents(kept_lanes, standing)
            later[:, LAGS.index(age)] += seen.later[:, rows].sum(1, dtype=np.float64)
            pairs[LAGS.index(age)] += rows.sum()
        if age == LAGS[-1] or not any(kept_lanes):
            kept, kept_lanes, age = carried.recurrent, standing, 0
    size, change, similarity = np.concatenate(blocks, -1).astype(np.float64)
    later = np.divide(later, pairs, out=np.full_like(later, np.nan), where=pairs > 0)
    shares = np.moveaxis(gates / max(len(positions), 1), 2, 0)
    attention, entropy = attention / len(corpus.tokens), entropy / len(corpus.tokens)
    layers = zip(size, change, similarity, later, *shares, attention, np.exp(entropy), strict=True)
    return [LayerStates(np.array(positions, int), *figures) for figures in layers]


def _same_documents(lanes: Lanes, others: Lanes) -> np.ndarray:
    pairs = zip(lanes, others, strict=True)
    return np.array([bool(a and b and a.part == b.part) for a, b in pairs])
