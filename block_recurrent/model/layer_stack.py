"""The parts of a model's stack: neighbouring plain layers together, a recurrent layer alone.

Both kinds of part are called in the same way. Each takes and returns its slice of a `ModelState`,
the caches of its layers and the states of its recurrent layers.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.attention import target_platform
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.recurrent import BlockRecurrentLayer
from block_recurrent.model.sliding_window import SlidingWindowLayer
from block_recurrent.model.state import (
    KeysValues,
    LayerState,
    ModelState,
    add_axis,
    concatenate,
    empty_cache,
    stack,
    take,
)

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
