"""The stack of layers: Transformer-XL, sliding-window and recurrent models alike.

Neighbouring plain layers are one part of it, a recurrent layer is another. Both kinds of part are
called in the same way. Each takes and returns its slice of a `ModelState`, the caches of its layers
and the states of its recurrent layers.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig, ModelConfig
from block_recurrent.model.attention import target_platform
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.checks import (
    check_initial_state,
    check_layer,
    check_recurrent_call,
    checked,
)
from block_recurrent.model.state import (
    KeysValues,
    LayerState,
    ModelState,
    add_axis,
    concatenate,
    empty_cache,
    flatten_heads,
    last_window,
    preceding_blocks,
    scan_blocks,
    stack,
    swap_blocks_and_batch,
    take,
    unflatten_heads,
)
from block_recurrent.model.transformer_layer import SlidingWindowLayer, split_key


class BlockRecurrentLayer(nnx.Module):
    """A recurrent cell over all blocks of a segment (paper, sections 3.1 and 3.2).

    The states need the tokens through their keys and values alone, so everything on the token side
    is computed for all blocks at once, and the scan over blocks holds the state update and nothing
    else.

    Args:
      config: sizes, gate, wiring and positions.
      unroll: blocks per iteration of the scan.
      recompute_states: the backward pass computes each state update again, so that the scan keeps
        the states and nothing else.
      rngs: of the initial parameters.
    """

    @checked(check_layer)
    def __init__(
        self,
        config: LayerConfig,
        *,
        unroll: int = 1,
        recompute_states: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.unroll = unroll
        self.recompute_states = recompute_states
        self.cell = RecurrentCell(config, rngs=rngs)

    @checked(check_initial_state)
    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states [B, S, E]."""
        return self.cell.initial_state(batch_size)

    @checked(check_recurrent_call)
    def __call__(
        self, x: Array, state: LayerState, *, dropout_key: Array | None = None
    ) -> tuple[Array, LayerState]:
        """Reads a segment.

        Args:
          x: [B, N, E], N a multiple of W.
          state: cache [B, W, H, D] and states [B, S, E] as they enter the segment.
          dropout_key: dropout is on when given; the state direction has none.

        Returns:
          Output [B, N, E], and the state for the next segment.

        Raises:
          TypeError: an argument of another kind.
          ValueError: shapes that do not fit the configuration.
        """
        layer = self.cell.token_layer
        project_key, attend_key, finish_key = split_key(dropout_key, 3)
        projections = layer.project(x, project_key)
        blocks = layer.blocks(flatten_heads(projections.context))
        tiles = concatenate([preceding_blocks(blocks, flatten_heads(state.cache)), blocks], axis=2)
        states, state_context = self.scan_states(state.recurrent, tiles)
        attended = layer.self_attend(x, projections, state.cache, attend_key)
        cache = last_window(projections.context, self.config.window)
        return layer.finish(attended, state_context, finish_key), LayerState(cache, states)

    def scan_states(self, states: Array, tiles: KeysValues) -> tuple[Array, KeysValues]:
        """Moves the states over the blocks.

        Args:
          states: [B, S, E] float32, as they enter the first block.
          tiles: keys and values of each block and the one before, [B, K, 2W, H*D].

        Returns:
          The states after the last block, and the keys and values [B, K, S, H, D] of the states as
          they entered each block.
        """

        def step(states: Array, tile: KeysValues) -> tuple[Array, KeysValues]:
            token_context = unflatten_heads(tile, self.config.num_heads)
            projections = self.cell.project(states)
            return self.cell.update(states, projections, token_context), projections.context

        by_block = swap_blocks_and_batch(tiles)
        states, context = scan_blocks(
            step, states, by_block, unroll=self.unroll, recompute=self.recompute_states
        )
        return states, swap_blocks_and_batch(context)


MANY_LAYERS = 24


def part_ranges(config: ModelConfig) -> tuple[range, ...]:
    """The layers of each part, bottom up; a part whose first layer is recurrent has only that one.

    With feedback the first layer is a part of its own, because its self-attention does not depend
    on any state.
    """
    recurrent = config.recurrent_indices
    edges = {0, config.num_layers} | {edge for index in recurrent for edge in (index, index + 1)}
    if config.feedback:
        edges.add(1)
    return tuple(range(start, stop) for start, stop in pairwise(sorted(edges)))


def scans_layers(config: ModelConfig) -> bool:
    """Whether plain layers are a loop in the compiled program too."""
    if config.scan_layers is not None:
        return config.scan_layers
    return target_platform() != "cpu" or config.num_layers >= MANY_LAYERS


def _keep_everything(function: Callable, *, in_scan: bool) -> Callable:
    del in_scan
    return function


def _keep_nothing(function: Callable, *, in_scan: bool) -> Callable:
    policy = jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


def _keep_projections(function: Callable, *, in_scan: bool) -> Callable:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


# What the backward pass of a layer computes again. Inside a compiled loop nothing merges the two
# computations; elsewhere that must be prevented.
REMATERIALIZATIONS = {
    "none": _keep_everything,
    "layer": _keep_nothing,
    "dots": _keep_projections,
}


class LayerStack(nnx.Module):
    """Neighbouring plain layers, run one after the other by a scan.

    Args:
      config: of the model.
      num_layers: G, how many layers.
      rngs: of the initial parameters.

    Attributes:
      layers: a sliding-window layer whose every parameter has a leading axis of G layers.
    """

    def __init__(self, config: ModelConfig, num_layers: int, *, rngs: nnx.Rngs):
        def make_layer(key: Array) -> SlidingWindowLayer:
            return SlidingWindowLayer(
                config,
                attends_to_states=config.feedback,
                detach_windows=config.detach_windows,
                rngs=nnx.Rngs(key),
            )

        self.config = config
        self.num_layers = num_layers
        self.layers = jax.vmap(make_layer)(jax.random.split(rngs.params(), num_layers))
        self._scans = scans_layers(config)
        self._rematerialize = REMATERIALIZATIONS[config.remat]

    @property
    def cells(self) -> list[RecurrentCell]:
        """No recurrent cells."""
        return []

    def single_layers(self) -> list[SlidingWindowLayer]:
        """Copies of the layers, bottom up."""
        return [take(self.layers, index) for index in range(self.num_layers)]

    def replace_layers(self, layers: Sequence[Any]) -> None:
        """Inverse of `single_layers`."""
        self.layers = stack(layers)

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start: empty caches [G, B, W, H, D] and no states."""
        config = self.config
        shape = (self.num_layers, batch_size, config.window, config.num_heads, config.head_size)
        states = jnp.zeros((0, batch_size, config.num_states, config.model_size), jnp.float32)
        return ModelState(empty_cache(shape, config.dtype), states)

    def __call__(
        self,
        x: Array,
        state: ModelState,
        state_context: KeysValues | None = None,
        *,
        dropout_keys: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """Reads a segment.

        Args:
          x: [B, N, E].
          state: of these layers.
          state_context: with feedback, keys and values of the states for each block,
            [B, K, S, H, D].
          dropout_keys: one a layer, [G]; None for no dropout.

        Returns:
          Output [B, N, E], and the state for the next segment.
        """

        def read(x: Array, inputs: tuple) -> tuple[Array, KeysValues]:
            layer, cache, key = inputs
            return layer(x, cache, state_context, dropout_key=key)

        step = self._rematerialize(read, in_scan=self._scans)
        inputs = (self.layers, state.cache, dropout_keys)
        x, cache = jax.lax.scan(step, x, inputs, unroll=1 if self._scans else True)
        return x, state._replace(cache=cache)

    def read_token(
        self,
        x: Array,
        visible: Sequence[KeysValues],
        oldest: Array,
        state_contexts: Sequence[KeysValues],
    ) -> tuple[Array, list[KeysValues]]:
        """Reads one token.

        Args:
          x: [B, 1, E].
          visible: of each layer, keys and values of the W tokens before it, [B, W, H, D].
          oldest: where among these the first of them is, int32 scalar.
          state_contexts: of each recurrent layer of the model, keys and values of the states that
            entered the token's block, [B, 1, S, H, D].

        Returns:
          Output [B, 1, E], and of each layer the token's own keys and values, [B, 1, H, D].
        """
        state_context = state_contexts[-1] if self.layers.attends_to_states else None
        contexts = []
        for layer, before in zip(self.single_layers(), visible, strict=True):
            x, context = layer.read_token(x, before, oldest, state_context)
            contexts.append(context)
        return x, contexts


class SingleRecurrentLayer(nnx.Module):
    """A recurrent layer as a part of the stack; its methods are those of `LayerStack` with G = 1.

    Args:
      config: of the model.
      index: of this layer among the recurrent ones, from 0.
      rngs: of the initial parameters.
    """

    def __init__(self, config: ModelConfig, index: int, *, rngs: nnx.Rngs):
        self.index = index
        self.layer = BlockRecurrentLayer(
            config,
            unroll=config.state_unroll,
            recompute_states=config.remat != "none",
            rngs=rngs,
        )
        self._rematerialize = REMATERIALIZATIONS[config.remat]

    @property
    def cells(self) -> list[RecurrentCell]:
        """The layer's cell."""
        return [self.layer.cell]

    def single_layers(self) -> list[RecurrentCell]:
        """The layer's cell, which holds all its parameters; not a copy."""
        return [self.layer.cell]

    def replace_layers(self, layers: Sequence[Any]) -> None:
        """Inverse of `single_layers`."""
        (self.layer.cell,) = layers

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start: an empty cache and the learned states."""
        return ModelState(*add_axis(self.layer.initial_state(batch_size)))

    def __call__(
        self,
        x: Array,
        state: ModelState,
        state_context: KeysValues | None = None,
        *,
        dropout_keys: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """Reads a segment; the layer attends to its own states, not to `state_context`."""

        def read(layer, x, state, key):
            return layer(x, state, dropout_key=key)

        key = None if dropout_keys is None else dropout_keys[0]
        step = self._rematerialize(read, in_scan=False)
        x, layer_state = step(self.layer, x, LayerState(*take(state, 0)), key)
        return x, ModelState(*add_axis(layer_state))

    def read_token(
        self,
        x: Array,
        visible: Sequence[KeysValues],
        oldest: Array,
        state_contexts: Sequence[KeysValues],
    ) -> tuple[Array, list[KeysValues]]:
        """Reads one token."""
        layer, state_context = self.layer.cell.token_layer, state_contexts[self.index]
        x, context = layer.read_token(x, visible[0], oldest, state_context)
        return x, [context]


Part = LayerStack | SingleRecurrentLayer


def make_parts(config: ModelConfig, rngs: nnx.Rngs) -> list[Part]:
    """The parts of a model, bottom up."""
    recurrent = config.recurrent_indices
    return [
        SingleRecurrentLayer(config, recurrent.index(layers.start), rngs=rngs)
        if layers.start in recurrent
        else LayerStack(config, len(layers), rngs=rngs)
        for layers in part_ranges(config)
    ]


def split_state(config: ModelConfig, state: ModelState) -> list[ModelState]:
    """The slice of a model's state that belongs to each part."""
    slices, first = [], 0
    for layers in part_ranges(config):
        last = first + (layers.start in config.recurrent_indices)
        cache = take(state.cache, slice(layers.start, layers.stop))
        slices.append(ModelState(cache, state.recurrent[first:last]))
        first = last
    return slices


def join_states(states: Sequence[ModelState]) -> ModelState:
    """Inverse of `split_state`."""
    return concatenate(states)


class Stack(nnx.Module):
    """All layers between the embedding and the final norm.

    Attributes:
      parts: bottom up; neighbouring plain layers are one part, a recurrent layer is one.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.parts = nnx.List(make_parts(config, rngs))

    @property
    def cells(self) -> list[RecurrentCell]:
        """The recurrent cells, lowest first."""
        return [cell for part in self.parts for cell in part.cells]

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start for `batch_size` rows."""
        return join_states([part.initial_state(batch_size) for part in self.parts])

    def __call__(
        self, x: Array, state: ModelState, *, dropout_key: Array | None = None
    ) -> tuple[Array, ModelState]:
        """Reads a segment: x [B, N, E] -> output [B, N, E] and the state for the next segment."""
        states, keys = split_state(self.config, state), self._dropout_keys(dropout_key)
        x, states = self.read_parts(x, states, keys)
        return x, join_states(states)

    def read_parts(
        self, x: Array, states: Sequence[ModelState], dropout_keys: Sequence[Array | None]
    ) -> tuple[Array, list[ModelState]]:
        """Reads a segment with one part after the other.

        Args:
          x: [B, N, E].
          states: of each part.
          dropout_keys: of each part, one a layer, or Nones.

        Returns:
          Output [B, N, E], and the state of each part for the next segment.
        """
        next_states = []
        for part, state, keys in zip(self.parts, states, dropout_keys, strict=True):
            x, state = part(x, state, dropout_keys=keys)
            next_states.append(state)
        return x, next_states

    def _dropout_keys(self, key: Array | None) -> list[Array | None]:
        """Dropout keys for each part, one a layer, or Nones."""
        if key is None:
            return [None] * len(self.parts)
        keys = jax.random.split(key, self.config.num_layers)
        return [keys[layers.start : layers.stop] for layers in part_ranges(self.config)]

    def read_token(
        self,
        x: Array,
        visible: Sequence[KeysValues],
        oldest: Array,
        state_contexts: Sequence[KeysValues],
    ) -> tuple[Array, list[KeysValues]]:
        """Reads one token.

        Args:
          x: [B, 1, E].
          visible: of each layer, keys and values of the W tokens before it, in their order from
            `oldest` on and round the end, [B, W, H, D].
          oldest: int32 scalar, 0 to W - 1.
          state_contexts: of each recurrent layer, keys and values of the states that entered the
            token's block, [B, 1, S, H, D].

        Returns:
          Output [B, 1, E], and of each layer the token's keys and values, [B, 1, H, D].
        """
        contexts = []
        for part, layers in zip(self.parts, part_ranges(self.config), strict=True):
            before = visible[layers.start : layers.stop]
            x, own = part.read_token(x, before, oldest, state_contexts)
            contexts += own
        return x, contexts
