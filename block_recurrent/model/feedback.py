"""Feedback: all other layers attend to the state of the last recurrent one (paper, section 3.4).

The layers below the recurrent one now need the state before they can produce the keys and values it
is updated with, so they join the loop over blocks. Outside it stay the first layer up to its
self-attention, the recurrent layer's attention and MLP, and all layers above.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.attention import (
    KeysValues,
    join_blocks,
    last_window,
    split_blocks,
    window_tiles,
)
from block_recurrent.model.cell import concatenate_windows
from block_recurrent.model.groups import Group, GroupState, run_group
from block_recurrent.model.recurrent import BlockRecurrentLayer
from block_recurrent.model.sliding_window import Begun, Projections, SlidingWindowLayer, split_key
from block_recurrent.model.state import LayerState

Keys = Sequence[Array | None]


class Arrival(NamedTuple):
    """Tokens as they arrive at the recurrent layer.

    Attributes:
      x: what the layer reads, [B, N, E].
      projections: of it, each [B, N, H, D].
      states: keys and values of the states that entered each block, [B, K, S, H, D].
    """

    x: Array
    projections: Projections
    states: KeysValues


def run_with_feedback(
    config: ModelConfig, groups: Sequence[Group], x: Array, parts: Sequence[GroupState], keys: Keys
) -> tuple[Array, list[GroupState]]:
    """Reads a segment with all groups of a feedback model.

    Args:
      config: of the model.
      groups: bottom up, the first one a single layer.
      x: [B, N, E].
      parts: the state of each group.
      keys: dropout keys of each group, one a layer, or Nones.

    Returns:
      Output [B, N, E], and the state of each group for the next segment.
    """
    last = max(i for i, group in enumerate(groups) if isinstance(group, BlockRecurrentLayer))
    layer, layer_state = cast(BlockRecurrentLayer, groups[last]), cast(LayerState, parts[last])
    outside, inside = split_first(keys)
    entry, enter = x, None
    new_parts: list[GroupState] = []
    if isinstance(groups[0], SlidingWindowLayer):
        first = jax.tree.map(lambda parameter: parameter[0], groups[0])
        entry, caches = begin_first(first, x, cast(KeysValues, parts[0]), outside[0])
        new_parts.append(caches)
        enter = first.end
    start = len(new_parts)
    step = make_step(config, groups[start:last], layer, enter, inside[: last + 1])
    loop_parts, arrival = scan_blocks(step, entry, parts[start : last + 1], config)
    x = finish_recurrent(layer, arrival, layer_state.cache, outside[last])
    new_parts += loop_parts
    for index in range(last + 1, len(groups)):
        x, part = run_group(config, groups[index], x, parts[index], arrival.states, keys[index])
        new_parts.append(part)
    return x, new_parts


def split_first(keys: Keys) -> tuple[Keys, Keys]:
    """From each group's keys [G], one key for use outside the loop and [G] keys for inside."""
    outside = [None if key is None else jax.random.fold_in(key[0], 0) for key in keys]
    return outside, fold_in_all(keys, 1)


def fold_in_all(keys: Keys, data: Array | int) -> Keys:
    """Every key of every group folded with `data`."""
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return [None if key is None else fold(key, data) for key in keys]


def first_of(keys: Array | None) -> Array | None:
    """The key of a group of one layer."""
    return None if keys is None else keys[0]


def begin_first(
    layer: SlidingWindowLayer, x: Array, caches: KeysValues, dropout_key: Array | None
) -> tuple[Begun, KeysValues]:
    """The first layer up to its self-attention, and its group's next caches [1, B, W, H, D]."""
    project_key, begin_key = split_key(dropout_key, 2)
    projections = layer.project(x, project_key)
    tiles = window_tiles(projections.current, jax.tree.map(lambda y: y[0], caches))
    cache = last_window(projections.current, layer.config.window)
    begun = layer.begin(x, projections, tiles, begin_key)
    return begun, jax.tree.map(lambda y: y[None], cache)


def finish_recurrent(
    layer: BlockRecurrentLayer, arrival: Arrival, previous: KeysValues, dropout_key: Array | None
) -> Array:
    """The recurrent layer's attention and MLP for all blocks at once; its output, [B, N, E]."""
    tokens = layer.cell.tokens
    begin_key, end_key = split_key(dropout_key, 2)
    tiles = window_tiles(arrival.projections.current, previous)
    begun = tokens.begin(arrival.x, arrival.projections, tiles, begin_key)
    return tokens.end(begun, arrival.states, end_key)


def make_step(
    config: ModelConfig,
    middle: Sequence[Group],
    layer: BlockRecurrentLayer,
    enter: Callable | None,
    keys: Keys,
) -> Callable:
    """The body of the loop: one block through the layers up to the recurrent one, and its state.

    Args:
      config: of the model.
      middle: the groups in the loop below the recurrent layer.
      layer: the recurrent layer.
      enter: second half of the first layer, (Begun, states, key) -> x; None if it is in `middle`.
      keys: dropout keys of all groups up to the recurrent layer.
    """
    cell = layer.cell

    def step(carry, inputs):
        (*parts, state), (x, block) = carry, inputs
        block_keys = fold_in_all(keys, block)
        *middle_keys, project_key = block_keys[-len(middle) - 1 :]
        projected = cell.project(state.recurrent)
        states = jax.tree.map(lambda y: y[:, None], projected.context)
        if enter is not None:
            x = enter(x, states, first_of(block_keys[0]))
        for index, group in enumerate(middle):
            x, parts[index] = run_group(config, group, x, parts[index], states, middle_keys[index])
        projections = cell.tokens.project(x, first_of(project_key))
        tokens = concatenate_windows(state.cache, projections.current)
        recurrent = cell.update(state.recurrent, projected, tokens)
        next_carry = [*parts, LayerState(projections.current, recurrent)]
        return next_carry, Arrival(x, projections, projected.context)

    return step


def scan_blocks(
    step: Callable, entry: Array | Begun, parts: Sequence[GroupState], config: ModelConfig
) -> tuple[list[GroupState], Arrival]:
    """Scans `step` over the blocks of `entry`, arrays [B, N, ...], and lays them together again."""
    blocks = jax.tree.map(lambda y: jnp.moveaxis(split_blocks(y, config.window), 1, 0), entry)
    numbers = jnp.arange(jax.tree.leaves(blocks)[0].shape[0])
    unroll = config.state_unroll
    parts, arrival = jax.lax.scan(step, list(parts), (blocks, numbers), unroll=unroll)
    x, projections, states = jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1), arrival)
    x, projections = jax.tree.map(join_blocks, (x, projections))
    return parts, Arrival(x, projections, states)
