"""The block-recurrent cell: one block of tokens and one step of the state (paper, section 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.attention import (
    KeysValues,
    RMSNorm,
    apply_dense,
    attend,
    dense,
    l2_normalize,
)
from block_recurrent.model.checks import (
    check_config,
    check_keys_values,
    check_layer_state,
    check_recurrent,
)
from block_recurrent.model.gates import GATES
from block_recurrent.model.sliding_window import SlidingWindowLayer, scaled_queries, split_heads
from block_recurrent.model.state import LayerState


class SkipWiring(nnx.Module):
    """`s' = gate(s, W y)`: no MLP."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        self.gate = GATES[config.gate](heads_size, config.model_size, rngs=rngs)

    def __call__(self, state: Array, attended: Array) -> Array:
        """State [B, S, E] float32 and heads [B, S, 2HD] -> next state."""
        return self.gate(state, attended)


class SingleWiring(nnx.Module):
    """`s' = gate(s, tanh(W2 relu(W1 y)))`: the MLP reads the heads themselves, one gate."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.hidden = dense(heads_size, config.mlp_size, rngs=rngs)
        self.gate = gate(config.mlp_size, config.model_size, activation=jnp.tanh, rngs=rngs)

    def __call__(self, state: Array, attended: Array) -> Array:
        """State [B, S, E] float32 and heads [B, S, 2HD] -> next state."""
        (hidden,) = apply_dense(attended, self.hidden)
        return self.gate(state, jax.nn.relu(hidden))


class DualWiring(nnx.Module):
    """`u = gate1(s, W y)`, `s' = gate2(u, W2 relu(W1 rms(u)))`: gates in place of residuals."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.attention_gate = gate(heads_size, config.model_size, rngs=rngs)
        self.norm = RMSNorm(config.model_size)
        self.hidden = dense(config.model_size, config.mlp_size, rngs=rngs)
        self.mlp_gate = gate(config.mlp_size, config.model_size, rngs=rngs)

    def __call__(self, state: Array, attended: Array) -> Array:
        """State [B, S, E] float32 and heads [B, S, 2HD] -> next state."""
        state = self.attention_gate(state, attended)
        (hidden,) = apply_dense(self.norm(state).astype(attended.dtype), self.hidden)
        return self.mlp_gate(state, jax.nn.relu(hidden))


WIRINGS = {"skip": SkipWiring, "single": SingleWiring, "dual": DualWiring}


class StateProjections(NamedTuple):
    """What the states entering a block are read and updated with, each [B, S, H, D].

    Attributes:
      context: keys and values, for the tokens of the block and for the states themselves.
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
      tokens: the token side, a sliding-window layer that also attends to the states.
      initial: [S, E] float32, the state at a document's start, initially N(0, 0.1²).
      ids: [S, E] float32, added to the normed states to tell them apart, initially N(0, 1).
    """

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        check_config(config, LayerConfig)
        size, heads_size = config.model_size, config.num_heads * config.head_size
        shape = (config.num_states, size)
        self.config = config
        self.tokens = SlidingWindowLayer(config, attends_to_states=True, rngs=rngs)
        self.initial = nnx.Param(0.1 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.ids = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.norm = RMSNorm(size)
        self.keys = dense(size, heads_size, rngs=rngs)
        self.values = dense(size, heads_size, rngs=rngs)
        self.queries = dense(size, heads_size, rngs=rngs)
        self.token_queries = dense(size, heads_size, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((config.num_heads,), jnp.float32))
        self.token_scale = nnx.Param(jnp.ones((config.num_heads,), jnp.float32))
        self.wiring = WIRINGS[config.wiring](config, rngs=rngs)

    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states [B, S, E]."""
        cache = self.tokens.initial_state(batch_size)
        recurrent = jnp.broadcast_to(self.initial[...], (batch_size, *self.initial.shape))
        return LayerState(cache, recurrent)

    def project(self, state: Array) -> StateProjections:
        """Norm, ids, and keys, values and queries of the states [B, S, E] as one product."""
        check_recurrent(self.config, state)
        normed = (self.norm(state) + self.ids).astype(self.config.dtype)
        layers = (self.keys, self.values, self.queries, self.token_queries)
        keys, values, queries, token_queries = (
            split_heads(y, self.config) for y in apply_dense(normed, *layers)
        )
        return StateProjections(
            KeysValues(l2_normalize(keys), values),
            scaled_queries(queries, self.scale),
            scaled_queries(token_queries, self.token_scale),
        )

    def update(self, state: Array, projections: StateProjections, tokens: KeysValues) -> Array:
        """The next state, given the projections of the present one; otherwise as `horizontal`."""
        own = attend(projections.queries, projections.context)
        read = attend(projections.token_queries, tokens)
        heads = jnp.concatenate([own, read], axis=-2)
        return self.wiring(state, heads.reshape(*heads.shape[:-2], -1))

    def horizontal(self, state: Array, tokens: KeysValues) -> Array:
        """States to next states.

        Args:
          state: [B, S, E] float32, as it enters the block.
          tokens: keys and values of the previous and the current block, [B, 2W, H, D].

        Returns:
          [B, S, E] float32, the state that enters the next block.

        Raises:
          ValueError: shapes that do not fit one another or the configuration.
        """
        config = self.config
        check_recurrent(config, state)
        shape = (state.shape[0], 2 * config.window, config.num_heads, config.head_size)
        check_keys_values("tokens", tokens, shape)
        return self.update(state, self.project(state), tokens)

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
          ValueError: more than one block, or shapes that do not fit the configuration.
        """
        check_layer_state(self.config, x, state)
        if x.shape[1] != self.config.window:
            raise ValueError(
                f"a cell reads one block of {self.config.window} tokens, not {x.shape[1]}; "
                "BlockRecurrentLayer reads whole segments"
            )
        states = jax.tree.map(lambda y: y[:, None], self.project(state.recurrent).context)
        return self.tokens(x, state.cache, states, dropout_key=dropout_key)

    def __call__(
        self, x: Array, state: LayerState, *, dropout_key: Array | None = None
    ) -> tuple[Array, LayerState]:
        """One block in both directions: x [B, W, E] -> output [B, W, E] and the next state."""
        y, current = self.vertical(x, state, dropout_key=dropout_key)
        tokens = concatenate_windows(state.cache, current)
        return y, LayerState(current, self.horizontal(state.recurrent, tokens))


def concatenate_windows(previous: KeysValues, current: KeysValues) -> KeysValues:
    """Two windows [B, W, H, D] -> [B, 2W, H, D]."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), previous, current)
