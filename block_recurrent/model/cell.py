"""The block-recurrent cell: one block of tokens and one step of the state (paper, section 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.checks import (
    check_cell_call,
    check_horizontal,
    check_initial_state,
    check_layer,
    check_project,
    checked,
)
from block_recurrent.model.gates import GATES, Gate
from block_recurrent.model.layers import RMSNorm, apply_dense, apply_side_by_side, dense, relu
from block_recurrent.model.state import KeysValues, LayerState, add_axis, concatenate_windows
from block_recurrent.model.transformer_layer import (
    SlidingWindowLayer,
    make_scale,
    query_length,
)


class SkipWiring(nnx.Module):
    """`s' = gate(s, W y)`: no MLP."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        self.gate = GATES[config.gate](heads_size, config.model_size, rngs=rngs)

    def __call__(self, states: Array, attended: Array) -> Array:
        """States [B, S, E] float32 and heads [B, S, 2HD] -> next states."""
        return self.gate(states, attended)

    def gate_inputs(self, states: Array, attended: Array) -> list[tuple[Gate, Array]]:
        """The gate and its input [B, S, R], in a call with these arguments."""
        del states
        return [(self.gate, attended)]


class SingleWiring(nnx.Module):
    """`s' = gate(s, tanh(W2 relu(W1 y)))`: the MLP reads the heads themselves, one gate."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.hidden = dense(heads_size, config.mlp_size, rngs=rngs)
        self.gate = gate(config.mlp_size, config.model_size, activation=jnp.tanh, rngs=rngs)

    def __call__(self, states: Array, attended: Array) -> Array:
        """States [B, S, E] float32 and heads [B, S, 2HD] -> next states."""
        ((gate, inputs),) = self.gate_inputs(states, attended)
        return gate(states, inputs)

    def gate_inputs(self, states: Array, attended: Array) -> list[tuple[Gate, Array]]:
        """The gate and its input [B, S, R], in a call with these arguments."""
        del states
        (hidden,) = apply_dense(attended, self.hidden)
        return [(self.gate, relu(hidden))]


class DualWiring(nnx.Module):
    """`u = gate1(s, W y)`, `s' = gate2(u, W2 relu(W1 rms(u)))`: gates in place of residuals."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.attention_gate = gate(heads_size, config.model_size, rngs=rngs)
        self.norm = RMSNorm(config.model_size)
        self.hidden = dense(config.model_size, config.mlp_size, rngs=rngs)
        self.mlp_gate = gate(config.mlp_size, config.model_size, rngs=rngs)

    def __call__(self, states: Array, attended: Array) -> Array:
        """States [B, S, E] float32 and heads [B, S, 2HD] -> next states."""
        states = self.attention_gate(states, attended)
        return self.mlp_gate(states, self._mlp_inputs(states, attended.dtype))

    def gate_inputs(self, states: Array, attended: Array) -> list[tuple[Gate, Array]]:
        """Both gates and their inputs [B, S, R], in a call with these arguments."""
        between = self.attention_gate(states, attended)
        inputs = self._mlp_inputs(between, attended.dtype)
        return [(self.attention_gate, attended), (self.mlp_gate, inputs)]

    def _mlp_inputs(self, states: Array, dtype: jnp.dtype) -> Array:
        (hidden,) = apply_dense(self.norm(states).astype(dtype), self.hidden)
        return relu(hidden)


WIRINGS = {"skip": SkipWiring, "single": SingleWiring, "dual": DualWiring}


class StateProjections(NamedTuple):
    """What the states that enter a block are read and updated with, each [B, S, H, D].

    Attributes:
      context: keys and values, for the tokens of the block and the states to attend to.
      queries: on the states, normalised and scaled.
      token_queries: on the tokens, normalised and scaled.
    """

    context: KeysValues
    queries: Array
    token_queries: Array


class RecurrentCell(nnx.Module):
    """A recurrent layer's parameters and its step over one block of W tokens.

    `cell(x, state)` is `vertical` and `horizontal` together; a layer is this step scanned over the
    blocks of a segment.

    Attributes:
      token_layer: the token side, a sliding-window layer that also attends to the states.
      initial: [S, E] float32, the states at a document's start, initially N(0, 0.1²).
      ids: [S, E] float32, added to the normed states to tell them apart, initially N(0, 1).
    """

    @checked(check_layer)
    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        size, heads_size = config.model_size, config.num_heads * config.head_size
        shape = (config.num_states, size)
        self.config = config
        self.token_layer = SlidingWindowLayer(config, attends_to_states=True, rngs=rngs)
        self.initial = nnx.Param(0.1 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.ids = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.norm = RMSNorm(size)
        self.keys = dense(size, heads_size, rngs=rngs)
        self.values = dense(size, heads_size, rngs=rngs)
        self.queries = dense(size, heads_size, rngs=rngs)
        self.token_queries = dense(size, heads_size, rngs=rngs)
        self.scale = make_scale(config)
        self.token_scale = make_scale(config)
        self.wiring = WIRINGS[config.wiring](config, rngs=rngs)

    @checked(check_initial_state)
    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states [B, S, E]."""
        cache = self.token_layer.initial_state(batch_size)
        states = jnp.broadcast_to(self.initial[...], (batch_size, *self.initial.shape))
        return LayerState(cache, states)

    @checked(check_project)
    def project(self, states: Array) -> StateProjections:
        """Norm, ids, and keys, values and queries of the states [B, S, E] as one product."""
        normed = (self.norm(states) + self.ids).astype(self.config.dtype)
        layers = (self.keys, self.values, self.queries, self.token_queries)
        lengths = [1.0, None, query_length(self.scale), query_length(self.token_scale)]
        projected = apply_side_by_side(normed, *layers)
        split_heads = self.token_layer.attention.split_heads
        keys, values, *queries = split_heads(projected, lengths, self.config.num_heads)
        return StateProjections(KeysValues(keys, values), *queries)

    def update(
        self, states: Array, projections: StateProjections, token_context: KeysValues
    ) -> Array:
        """`horizontal`, given the projections of the states."""
        return self.wiring(states, self.attend(projections, token_context))

    def attend(self, projections: StateProjections, token_context: KeysValues) -> Array:
        """The heads that the wiring takes, [B, S, 2HD]: on the states and on the tokens."""
        attend = self.token_layer.attention.attend
        own = attend(projections.queries, projections.context)
        read = attend(projections.token_queries, token_context)
        heads = jnp.concatenate([own, read], axis=-2)
        return heads.reshape(*heads.shape[:-2], -1)

    @checked(check_horizontal)
    def horizontal(self, states: Array, token_context: KeysValues) -> Array:
        """States to next states.

        Args:
          states: [B, S, E] float32, as they enter the block.
          token_context: keys and values of the previous and the current block, [B, 2W, H, D].

        Returns:
          [B, S, E] float32, the states that enter the next block.

        Raises:
          TypeError: an argument of another kind.
          ValueError: shapes that do not fit one another or the configuration.
        """
        return self.update(states, self.project(states), token_context)

    @checked(check_cell_call)
    def vertical(
        self, x: Array, state: LayerState, *, dropout_key: Array | None = None
    ) -> tuple[Array, KeysValues]:
        """Tokens to tokens: they see the window before them and the states entering the block.

        Args:
          x: one block, [B, W, E].
          state: cache and states as they enter the block.
          dropout_key: dropout is on when given.

        Returns:
          Output [B, W, E], and the keys and values of the block, [B, W, H, D].

        Raises:
          TypeError: an argument of another kind.
          ValueError: more than one block, or shapes that do not fit the configuration.
        """
        state_context = add_axis(self.project(state.recurrent).context, 1)
        return self.token_layer(x, state.cache, state_context, dropout_key=dropout_key)

    @checked(check_cell_call)
    def __call__(
        self, x: Array, state: LayerState, *, dropout_key: Array | None = None
    ) -> tuple[Array, LayerState]:
        """One block in both directions: x [B, W, E] -> output [B, W, E] and the next state.

        Arguments and errors are those of `vertical`.
        """
        projections = self.project(state.recurrent)
        state_context = add_axis(projections.context, 1)
        y, context = self.token_layer(x, state.cache, state_context, dropout_key=dropout_key)
        token_context = concatenate_windows(state.cache, context)
        states = self.update(state.recurrent, projections, token_context)
        return y, LayerState(context, states)
