"""Feedback: all other layers attend to the states of the last recurrent one (paper, section 3.4).

The layers below the recurrent one need the states before they can compute the keys and values that
update the states, so they join the scan over blocks. Three things stay outside the scan: the first
layer up to its self-attention, the recurrent layer's attention and MLP, and all layers above.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.array_types import Activations, Key
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.layers import split_key
from block_recurrent.model.rematerialization import scan_blocks
from block_recurrent.model.stack import LayerStack, Part, Stack
from block_recurrent.model.state import (
    KeysValues,
    LayerState,
    ModelState,
    add_axis,
    concatenate_windows,
    flatten_heads,
    join_blocks,
    last_window,
    split_blocks,
    swap_blocks_and_batch,
    take,
    unflatten_heads,
)
from block_recurrent.model.transformer_layer import Projections

DropoutKeys = Sequence[Key | None]


class RecurrentInput(NamedTuple):
    """What the scan over blocks computes for the recurrent layer; heads are flat."""

    x: Activations
    projections: Projections
    state_context: KeysValues  # of the states that entered each block, [B, K, S, H*D]


class FeedbackStack(Stack):
    """A stack whose plain layers also attend to the states of the last recurrent layer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self._recompute = config.remat != "none"

    def read_parts(
        self, x: Activations, states: Sequence[ModelState], dropout_keys: DropoutKeys
    ) -> tuple[Activations, list[ModelState]]:
        """Reads a segment; arguments and results are those of `Stack.read_parts`."""
        last = max(number for number, part in enumerate(self.parts) if part.cells)
        (cell,) = self.parts[last].cells
        outside = [None if key is None else jax.random.fold_in(key[0], 0) for key in dropout_keys]
        inside, first, window = fold_in(dropout_keys, 1), self.parts[0], self.config.window
        if isinstance(first, LayerStack):
            layer = take(first.layers, 0)
            project_key, attend_key = split_key(outside[0], 2)
            projections = layer.project(x, project_key)
            scanned = layer.self_attend(x, projections, take(states[0].cache, 0), attend_key)
            cache = last_window(projections.context, window)
            finish, next_states = layer.finish, [states[0]._replace(cache=add_axis(cache))]
        else:  # the first layer is recurrent: all of it belongs to the scan
            scanned, finish, next_states = x, lambda x, state_context, dropout_key: x, []
        begin = len(next_states)
        below = zip(self.parts[begin:last], states[begin:last], inside[begin:last], strict=True)
        single = [layer for part in below for layer in cut(*part)]
        keys = [*inside[:begin], *(key for _, _, key in single), inside[last]]
        step = make_step([part for part, _, _ in single], cell, finish, keys)
        recurrent_state = LayerState(*take(states[last], 0))

        blocks = split_blocks(scanned, window)
        numbers = jnp.arange(x.shape[1] // window)
        carry = ([state for _, state, _ in single], recurrent_state)
        inputs = (swap_blocks_and_batch(blocks), numbers)
        (states_below, after), arrived = scan_blocks(step, carry, inputs, recompute=self._recompute)
        x, *flat = swap_blocks_and_batch(arrived)
        projections, state_context = unflatten_heads(flat, self.config.num_heads)
        x, projections = join_blocks((x, projections))

        layer, (attend_key, finish_key) = cell.token_layer, split_key(outside[last], 2)
        attended = layer.self_attend(x, projections, recurrent_state.cache, attend_key)
        x = layer.finish(attended, state_context, finish_key)
        next_states += [*states_below, ModelState(*add_axis(after))]
        for number in range(last + 1, len(self.parts)):
            part, state, keys = self.parts[number], states[number], dropout_keys[number]
            x, state = part(x, state, state_context, dropout_keys=keys)
            next_states.append(state)
        return x, next_states


def cut(part: Part, state: ModelState, keys: Key | None) -> list[tuple[Part, ModelState, Any]]:
    """A part of the stack, its state and its keys as parts of one layer each.

    A loop adds up the gradients of what it reads from outside. Devices exchange those sums once,
    after the loop, but not if the gradients of several layers are stacked in it.
    """
    if not isinstance(part, LayerStack):
        return [(part, state, keys)]
    layers = range(part.num_layers)
    return [take((part, state, keys), slice(index, index + 1)) for index in layers]


def fold_in(keys: DropoutKeys, number: Array | int) -> DropoutKeys:
    """Every key of every part folded with a number."""
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return [None if key is None else fold(key, number) for key in keys]


def make_step(
    between: Sequence[Part], cell: RecurrentCell, finish: Callable, dropout_keys: DropoutKeys
) -> Callable:
    """The body of the scan: one block through the layers up to the recurrent one, and its states.

    `finish` is the second half of the first layer. The parts `between` it and the recurrent layer,
    which `cell` belongs to, are in the scan as a whole.
    """

    def step(carry, inputs):
        (states, recurrent), (block, number) = carry, inputs
        keys = fold_in(dropout_keys, number)
        first_key, recurrent_key = (None if key is None else key[0] for key in (keys[0], keys[-1]))
        state_projections = cell.project(recurrent.recurrent)
        state_context = add_axis(state_projections.context, 1)
        x, next_states = finish(block, state_context, first_key), []
        keys_between = keys[len(keys) - 1 - len(between) : -1]
        for part, state, part_keys in zip(between, states, keys_between, strict=True):
            x, state = part(x, state, state_context, dropout_keys=part_keys)
            next_states.append(state)
        projections = cell.token_layer.project(x, recurrent_key)
        token_context = concatenate_windows(recurrent.cache, projections.context)
        updated = cell.update(recurrent.recurrent, state_projections, token_context)
        next_carry = (next_states, LayerState(projections.context, updated))
        flat = flatten_heads((projections, state_projections.context))
        return next_carry, RecurrentInput(x, *flat)

    return step
