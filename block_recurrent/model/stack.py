"""The stack of layers: Transformer-XL, sliding-window and recurrent models alike.

Neighbouring plain layers are one part of it, a recurrent layer is another. Both kinds of part are
called in the same way. Each takes and returns its slice of a `ModelState`, the caches of its layers
and the states of its recurrent layers.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig, ModelConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Index, Key, States, TokenActivations
from block_recurrent.model.attention import target_platform
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.layers import split_key
from block_recurrent.model.rematerialization import rematerialize, scan_blocks
from block_recurrent.model.state import (
    KeysValues,
    LayerState,
    ModelState,
    add_axis,
    concatenate,
    flatten_heads,
    last_window,
    split_blocks,
    stack,
    swap_blocks_and_batch,
    take,
    unflatten_heads,
    with_preceding,
)
from block_recurrent.model.transformer_layer import SlidingWindowLayer


class BlockRecurrentLayer(nnx.Module):
    """A recurrent cell over all blocks of a segment (paper, sections 3.1 and 3.2).

    The states need only the keys and values of the tokens. Everything on the token side is
    therefore computed for all blocks at once, and the scan over blocks holds only the state update.

    Args:
      config: sizes, gate, wiring and positions.
      recompute_states: the backward pass computes each state update again, so that the scan keeps
        only the states.
      rngs: of the initial parameters.
    """

    def __init__(self, config: LayerConfig, *, recompute_states: bool = False, rngs: nnx.Rngs):
        checks.check_config(config, LayerConfig, rngs)
        self.config = config
        self.recompute_states = recompute_states
        self.cell = RecurrentCell(config, rngs=rngs)

    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states."""
        return self.cell.initial_state(batch_size)

    def __call__(
        self, x: Activations, state: LayerState, *, dropout_key: Key | None = None
    ) -> tuple[Activations, LayerState]:
        """Reads a segment.

        Args:
          x: the segment, N a multiple of W.
          state: cache and states as they enter the segment.
          dropout_key: dropout is on when given; the state update has none.

        Returns:
          The layer's output, and the state for the next segment.

        Raises:
          TypeError: an argument of another kind.
          ValueError: shapes that do not fit the configuration.
        """
        checks.check_layer_call(self, x, state, dropout_key)
        layer = self.cell.token_layer
        project_key, attend_key, finish_key = split_key(dropout_key, 3)
        projections = layer.project(x, project_key)
        blocks = split_blocks(flatten_heads(projections.context), self.config.window)
        token_contexts = with_preceding(blocks, flatten_heads(state.cache))

        def update_states(states: States, token_context: KeysValues) -> tuple[States, KeysValues]:
            token_context = unflatten_heads(token_context, self.config.num_heads)
            projections = self.cell.project(states)
            context = flatten_heads(projections.context)
            return self.cell.update(states, projections, token_context), context

        by_block = swap_blocks_and_batch(token_contexts)
        states, state_contexts = scan_blocks(
            update_states, state.recurrent, by_block, recompute=self.recompute_states
        )
        state_contexts = unflatten_heads(
            swap_blocks_and_batch(state_contexts), self.config.num_heads
        )
        attended = layer.self_attend(x, projections, state.cache, attend_key)
        cache = last_window(projections.context, self.config.window)
        return layer.finish(attended, state_contexts, finish_key), LayerState(cache, states)


MANY_LAYERS = 24
LayerKeys = Key  # one a layer, [G]
Contexts = Sequence[KeysValues]


# The parts of the stack.


def part_ranges(config: ModelConfig) -> tuple[range, ...]:
    """The layers of each part, bottom up; a recurrent layer is a part of its own.

    With feedback the first layer is a part of its own too, because its self-attention does not
    depend on any state.
    """
    recurrent = config.recurrent_indices
    edges = {0, config.num_layers} | {edge for index in recurrent for edge in (index, index + 1)}
    if config.feedback:
        edges.add(1)
    return tuple(range(start, stop) for start, stop in pairwise(sorted(edges)))


def stacked_layers(config: ModelConfig) -> tuple[str, ...]:
    """Paths of the `LayerStack.layers`, whose parameters have a leading axis of layers."""
    return tuple(
        f"stack.parts.{part}.layers"
        for part, layers in enumerate(part_ranges(config))
        if layers.start not in config.recurrent_indices
    )


def scans_layers(config: ModelConfig) -> bool:
    """Whether plain layers are a loop in the compiled program too."""
    if config.scan_layers is not None:
        return config.scan_layers
    # A loop stacks what is kept for the backward pass and takes slices of it.
    slow = target_platform() == "cpu" or config.remat in ("none", "dots")
    return not slow or config.num_layers >= MANY_LAYERS


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
        # By a TPU's compiler, stacking what attention gives takes longer than attending again.
        self._keeps = not self._scans or target_platform() != "tpu"

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
        shape = (0, batch_size, self.config.num_states, self.config.model_size)
        states = jnp.zeros(shape, jnp.float32)
        cache = self.layers.initial_state(batch_size)
        cache = jax.tree.map(lambda x: jnp.zeros((self.num_layers, *x.shape), x.dtype), cache)
        return ModelState(cache, states)

    def __call__(
        self,
        x: Activations,
        state: ModelState,
        state_context: KeysValues | None = None,
        *,
        dropout_keys: LayerKeys | None = None,
    ) -> tuple[Activations, ModelState]:
        """Reads a segment: the output of the last layer, and the state for the next segment.

        With feedback `state_context` has keys and values of the states for each block,
        [B, K, S, H, D].
        """

        def read(x: Array, inputs: tuple) -> tuple[Array, KeysValues]:
            layer, cache, key = inputs
            return layer(x, cache, state_context, dropout_key=key)

        step = rematerialize(read, self.config.remat, in_scan=self._scans, keeps=self._keeps)
        inputs = (self.layers, state.cache, dropout_keys)
        x, cache = jax.lax.scan(step, x, inputs, unroll=1 if self._scans else True)
        return x, state._replace(cache=cache)


class SingleRecurrentLayer(nnx.Module):
    """A recurrent layer as a part of the stack; its methods are those of `LayerStack` with G = 1.

    Args:
      config: of the model.
      rngs: of the initial parameters.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        # By a TPU's compiler, computing states again costs less than stacking what a loop keeps.
        recompute = config.remat != "none" or target_platform() != "cpu"
        self.layer = BlockRecurrentLayer(config, recompute_states=recompute, rngs=rngs)

    @property
    def cells(self) -> list[RecurrentCell]:
        """The layer's cell."""
        return [self.layer.cell]

    def single_layers(self) -> list[RecurrentCell]:
        """The layer's cell, which holds all its parameters; not a copy."""
        return self.cells

    def replace_layers(self, layers: Sequence[Any]) -> None:
        """Inverse of `single_layers`."""
        (self.layer.cell,) = layers

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start: an empty cache and the learned states."""
        return ModelState(*add_axis(self.layer.initial_state(batch_size)))

    def __call__(
        self,
        x: Activations,
        state: ModelState,
        state_context: KeysValues | None = None,
        *,
        dropout_keys: LayerKeys | None = None,
    ) -> tuple[Activations, ModelState]:
        """Reads a segment; the layer attends to its own states, not to `state_context`."""

        def read(layer, x, state, key):
            return layer(x, state, dropout_key=key)

        key = None if dropout_keys is None else dropout_keys[0]
        step = rematerialize(read, self.config.remat)
        x, layer_state = step(self.layer, x, LayerState(*take(state, 0)), key)
        return x, ModelState(*add_axis(layer_state))


Part = LayerStack | SingleRecurrentLayer


def split_state(config: ModelConfig, state: ModelState) -> list[ModelState]:
    """The slice of a model's state that belongs to each part; `concatenate` is the inverse."""
    slices, first = [], 0
    for layers in part_ranges(config):
        last = first + (layers.start in config.recurrent_indices)
        cache = take(state.cache, slice(layers.start, layers.stop))
        slices.append(ModelState(cache, state.recurrent[first:last]))
        first = last
    return slices


class Stack(nnx.Module):
    """All layers between the embedding and the final norm.

    Attributes:
      parts: bottom up; neighbouring plain layers are one part, a recurrent layer is one.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        parts = [
            SingleRecurrentLayer(config, rngs=rngs)
            if layers.start in config.recurrent_indices
            else LayerStack(config, len(layers), rngs=rngs)
            for layers in part_ranges(config)
        ]
        self.parts: Sequence[Part] = nnx.List(parts)

    @property
    def cells(self) -> list[RecurrentCell]:
        """The recurrent cells, lowest first."""
        return [cell for part in self.parts for cell in part.cells]

    def single_layers(self) -> list[SlidingWindowLayer | RecurrentCell]:
        """Every layer on its own, bottom up; copies of those that are stacked."""
        return [layer for part in self.parts for layer in part.single_layers()]

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start for `batch_size` rows."""
        return concatenate([part.initial_state(batch_size) for part in self.parts])

    def __call__(
        self, x: Activations, state: ModelState, *, dropout_key: Key | None = None
    ) -> tuple[Activations, ModelState]:
        """Reads a segment: the output of the last layer, and the state for the next segment."""
        ranges, keys = part_ranges(self.config), [None] * len(self.parts)
        if dropout_key is not None:
            each = jax.random.split(dropout_key, self.config.num_layers)
            keys = [each[layers.start : layers.stop] for layers in ranges]
        x, states = self.read_parts(x, split_state(self.config, state), keys)
        return x, concatenate(states)

    def read_parts(
        self,
        x: Activations,
        states: Sequence[ModelState],
        dropout_keys: Sequence[LayerKeys | None],
    ) -> tuple[Activations, list[ModelState]]:
        """Reads a segment with one part after the other; states and keys are those of each part."""
        next_states = []
        for part, state, keys in zip(self.parts, states, dropout_keys, strict=True):
            x, state = part(x, state, dropout_keys=keys)
            next_states.append(state)
        return x, next_states

    def read_token(
        self, x: TokenActivations, visible: Contexts, oldest: Index, state_contexts: Contexts
    ) -> tuple[TokenActivations, list[KeysValues]]:
        """Reads one token; arguments and results are those of `SlidingWindowLayer.read_token`.

        There are `visible` and own keys and values for each layer, and those of the states for each
        recurrent layer.
        """
        recurrent, contexts = iter(state_contexts), []
        for layer, before in zip(self.single_layers(), visible, strict=True):
            if isinstance(layer, RecurrentCell):
                x, own = layer.token_layer.read_token(x, before, oldest, next(recurrent))
            else:
                seen = state_contexts[-1] if layer.attends_to_states else None
                x, own = layer.read_token(x, before, oldest, seen)
            contexts.append(own)
        return x, contexts
