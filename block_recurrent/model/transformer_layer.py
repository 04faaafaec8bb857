"""The sliding-window layer: the token side of every layer, recurrent or not.

A layer reads a segment in three parts: `project`, `self_attend`, and `finish`, which needs the
states that the tokens attend to.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import (
    Activations,
    DistanceBias,
    Heads,
    Index,
    Key,
    TokenActivations,
)
from block_recurrent.model.attention import choose_attention, reference
from block_recurrent.model.layers import (
    INPUTS,
    OUTPUTS,
    RMSNorm,
    apply_dense,
    dense,
    dropout,
    project_to_heads,
    relu,
    split_key,
)
from block_recurrent.model.positions import POSITIONS
from block_recurrent.model.state import (
    KeysValues,
    flatten_heads,
    join_blocks,
    last_window,
    split_blocks,
)
from block_recurrent.parallel.axes import shard_batch


class Projections(NamedTuple):
    """The projections of a layer's tokens.

    Attributes:
      context: keys (normalised) and values [B, N, H, D], for tokens and states to attend to.
      queries: for self-attention, normalised and scaled.
      state_queries: for attention to states, normalised and scaled; None where there is none.
    """

    context: KeysValues
    queries: Heads
    state_queries: Heads | None = None


class SelfAttended(NamedTuple):
    """Tokens after self-attention and before attention to the states.

    Attributes:
      x: the layer's input.
      heads: the result of self-attention.
      state_queries: as in `Projections`.
    """

    x: Activations
    heads: Heads
    state_queries: Heads | None


class SlidingWindowLayer(nnx.Module):
    """Each token attends to exactly the W tokens before it, then an MLP (paper, section 3.1).

    With segments of one window this is a Transformer-XL layer. `layer(x, cache)` takes and returns
    the keys and values of the last window, so that a document may be read in any number of calls.

    Args:
      config: sizes and positions; the fields of the state update have no effect.
      attends_to_states: also attend to the states of a recurrent layer, given in each call.
      detach_windows: no gradient reaches the keys and values of the window before.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        config: LayerConfig,
        *,
        attends_to_states: bool = False,
        detach_windows: bool = False,
        rngs: nnx.Rngs,
    ):
        checks.check_config(config, LayerConfig, rngs)
        size, heads_size = config.model_size, config.num_heads * config.head_size
        self.config = config
        self.attends_to_states = attends_to_states
        self.detach_windows = detach_windows
        self.attention = choose_attention(config)
        self.norm = RMSNorm(size)
        self.keys = dense(size, heads_size, rngs=rngs)
        self.values = dense(size, heads_size, rngs=rngs)
        self.queries = dense(size, heads_size, rngs=rngs)
        self.scale = make_scale(config)
        self.positions = POSITIONS[config.positions](config.num_heads, rngs)
        self.state_queries = dense(size, heads_size, rngs=rngs) if attends_to_states else None
        self.state_scale = make_scale(config) if attends_to_states else None
        self.output = dense(heads_size * (1 + attends_to_states), size, rngs=rngs)
        self.mlp_norm = RMSNorm(size)
        self.mlp_hidden = dense(size, config.mlp_size, rngs=rngs)
        self.mlp_output = dense(config.mlp_size, size, rngs=rngs)

    def initial_state(self, batch_size: int) -> KeysValues:
        """The cache of a fresh document: zeros [B, W, H, D], which tokens do attend to."""
        checks.check_size("batch_size", batch_size)
        config = self.config
        shape = (batch_size, config.window, config.num_heads, config.head_size)
        return KeysValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    def __call__(
        self,
        x: Activations,
        cache: KeysValues,
        state_context: KeysValues | None = None,
        *,
        dropout_key: Key | None = None,
    ) -> tuple[Activations, KeysValues]:
        """Reads a segment.

        Args:
          x: the segment, N a multiple of W.
          cache: keys and values of the window before the segment, [B, W, H, D].
          state_context: keys and values of the states for each block, [B, K, S, H, D]; given
            exactly when the layer attends to states.
          dropout_key: dropout is on when given.

        Returns:
          The layer's output, and the cache for the next segment.

        Raises:
          TypeError: an argument of another kind.
          ValueError: shapes that do not fit the configuration, or `state_context` given or left
            out wrongly.
        """
        self._check(x, cache, state_context, dropout_key)
        project_key, attend_key, finish_key = split_key(dropout_key, 3)
        projections = self.project(x, project_key)
        attended = self.self_attend(x, projections, cache, attend_key)
        cache = last_window(projections.context, self.config.window)
        return self.finish(attended, state_context, finish_key), cache

    def _check(self, x: Array, cache: KeysValues, context: Any, dropout_key: Any) -> None:
        config = self.config
        checks.check_layer_call(self, x, cache, dropout_key, name="cache")
        if (context is None) == self.attends_to_states:
            raise ValueError("state_context must be given exactly when the layer attends to states")
        if context is not None:
            blocks = f"{x.shape[0]} {x.shape[1] // config.window}"
            shape = f"{blocks} S {config.num_heads} {config.head_size}"
            checks.check_keys_values("state_context", context, shape)

    def project(self, x: Activations, dropout_key: Key | None = None) -> Projections:
        """Norm, dropout, and keys, values and queries as one product."""
        normed = self.norm(x).astype(self.config.dtype)
        normed = dropout(normed, self.config.dropout, dropout_key)
        layers = [self.keys, self.values, self.queries]
        layers += [] if self.state_queries is None else [self.state_queries]
        lengths = [1.0, None, jnp.abs(self.scale[...])]
        lengths += [] if self.state_scale is None else [jnp.abs(self.state_scale[...])]
        projected = project_to_heads(normed, self.config.num_heads, *layers)
        heads = self.attention.split_heads(projected, lengths, self.config.num_heads)
        keys, values, queries, *state_queries = heads
        return Projections(KeysValues(keys, values), queries, *state_queries)

    def self_attend(
        self,
        x: Activations,
        projections: Projections,
        cache: KeysValues,
        dropout_key: Key | None = None,
    ) -> SelfAttended:
        """Self-attention of every token to the W tokens before it; `cache` is that of a call."""
        window, rotate = self.config.window, self.positions.rotate
        keys, values = projections.context
        before, now = np.split(np.arange(window + x.shape[1]), [window])
        heads = self.attention.attend_window(
            split_blocks(rotate(projections.queries, now), window),
            split_blocks(KeysValues(rotate(keys, now), values), window),
            cache._replace(keys=rotate(cache.keys, before)),
            self._scaled_bias(),
            detached=self.detach_windows,
            dropout_rate=self.config.attention_rate,
            dropout_key=dropout_key,
        )
        return SelfAttended(x, join_blocks(heads), projections.state_queries)

    def finish(
        self,
        attended: SelfAttended,
        state_context: KeysValues | None = None,
        dropout_key: Key | None = None,
    ) -> Activations:
        """Attention to the states, if any, then output projection and MLP; the layer's output.

        Every token of a block sees all states of the block's `state_context`, which is that of a
        call, without mask, bias or dropout of the probabilities.
        """
        x, heads, state_queries = attended
        heads = flatten_heads(heads)
        if state_context is not None and state_queries is not None:
            window = x.shape[1] // state_context.keys.shape[1]
            queries = split_blocks(state_queries, window)
            seen = self.attention.attend(queries, state_context)
            heads = jnp.concatenate([heads, flatten_heads(join_blocks(seen))], axis=-1)
        (update,) = apply_dense(heads, self.output, shared=INPUTS)
        x = shard_batch(x + update)
        (hidden,) = apply_dense(self.mlp_norm(x).astype(x.dtype), self.mlp_hidden, shared=OUTPUTS)
        (update,) = apply_dense(relu(hidden), self.mlp_output, shared=INPUTS)
        return shard_batch(x + dropout(update, self.config.dropout, dropout_key))

    def read_token(
        self,
        x: TokenActivations,
        visible: KeysValues,
        oldest: Index,
        state_context: KeysValues | None = None,
    ) -> tuple[TokenActivations, KeysValues]:
        """Reads one token, as a call would.

        Args:
          x: the token.
          visible: keys and values of the W tokens before it, [B, W, H, D], a ring that begins at
            `oldest`.
          oldest: index of the oldest of them, 0 to W - 1.
          state_context: keys and values of the states that entered its block, [B, 1, S, H, D],
            where the layer attends to states.

        Returns:
          The layer's output, and the token's own keys and values, [B, 1, H, D].
        """
        window = self.config.window
        projections = self.project(x)
        query = self.positions.rotate(projections.queries, np.array([window]))
        keys = self.positions.rotate(visible.keys, np.arange(window), oldest)
        bias = jnp.roll(self._scaled_bias(), oldest, axis=1)
        heads = reference.attend(query, visible._replace(keys=keys), bias[:, None])
        attended = SelfAttended(x, heads, projections.state_queries)
        return self.finish(attended, state_context), projections.context

    def _scaled_bias(self) -> DistanceBias:
        return self.positions.bias(self.config.window) * jnp.abs(self.scale[...])[:, None]


def make_scale(config: LayerConfig) -> nnx.Param:
    """The learned logit scale of each head [H], initially 1. It replaces 1/sqrt(D)."""
    return nnx.Param(jnp.ones((config.num_heads,), jnp.float32))
