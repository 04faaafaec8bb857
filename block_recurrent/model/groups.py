"""Groups of layers: what a stack is made of and runs one after the other.

Neighbouring plain layers are one group with stacked parameters, run by a scan; a recurrent layer
is a group of its own.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.attention import KeysValues
from block_recurrent.model.recurrent import BlockRecurrentLayer
from block_recurrent.model.sliding_window import SlidingWindowLayer
from block_recurrent.model.state import LayerState

# A plain group is a SlidingWindowLayer whose every parameter has a leading axis of layers.
Group = SlidingWindowLayer | BlockRecurrentLayer
GroupState = KeysValues | LayerState


class Span(NamedTuple):
    """Layers `start` to `stop` - 1 of the model, which form a group."""

    start: int
    stop: int
    recurrent: bool


def group_layers(config: ModelConfig) -> tuple[Span, ...]:
    """Cuts the layers into groups: recurrent layers alone, runs of plain layers together.

    With feedback the first layer is a group of its own, because its self-attention does not depend
    on any state.
    """
    recurrent = config.recurrent_indices
    edges = {0, config.num_layers} | {edge for index in recurrent for edge in (index, index + 1)}
    if config.feedback:
        edges.add(1)
    return tuple(Span(start, stop, start in recurrent) for start, stop in pairwise(sorted(edges)))


REMAT_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialize(function: Callable, config: ModelConfig, *, in_scan: bool) -> Callable:
    """`function` under the configured policy of what its backward pass computes again.

    Inside a compiled loop nothing merges the two computations; elsewhere that must be prevented.
    """
    if config.remat == "none":
        return function
    return jax.checkpoint(function, policy=REMAT_POLICIES[config.remat], prevent_cse=not in_scan)


def run_group(
    config: ModelConfig,
    group: Group,
    x: Array,
    state: GroupState,
    states: KeysValues | None = None,
    keys: Array | None = None,
) -> tuple[Array, GroupState]:
    """Reads a segment with one group.

    Args:
      config: of the model.
      group: plain layers, or a recurrent layer.
      x: [B, N, E].
      state: caches [G, B, W, H, D] of plain layers, or the state of the recurrent layer.
      states: with feedback, keys and values of the states that plain layers attend to,
        [B, K, S, H, D].
      keys: dropout keys, one a layer [G]; None for no dropout.

    Returns:
      Output [B, N, E], and the group's state for the next segment.
    """
    if isinstance(group, BlockRecurrentLayer):

        def recurrent(layer, x, state, key):
            return layer(x, state, dropout_key=key)

        key = None if keys is None else keys[0]
        return rematerialize(recurrent, config, in_scan=False)(group, x, state, key)

    def plain(x, inputs):
        layer, cache, key = inputs
        return layer(x, cache, states, dropout_key=key)

    step = rematerialize(plain, config, in_scan=config.scan_layers)
    unroll = 1 if config.scan_layers else True
    return jax.lax.scan(step, x, (group, state, keys), unroll=unroll)
