"""The sliding-window layer: the token side of every layer, recurrent or not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.arguments import check_key, check_rngs
from block_recurrent.model.attention import (
    KeysValues,
    RMSNorm,
    apply_dense,
    attend,
    dense,
    dropout,
    join_blocks,
    l2_normalize,
    last_window,
    split_blocks,
    window_tiles,
)
from block_recurrent.model.checks import (
    check_batch_size,
    check_config,
    check_keys_values,
    check_layer_input,
)
from block_recurrent.model.positions import make_positions, window_bias
from block_recurrent.model.state import empty_cache


class Projections(NamedTuple):
    """What a layer makes of its tokens, each [B, N, H, D].

    Attributes:
      current: keys (normalised) and values.
      queries: for self-attention, normalised and scaled.
      state_queries: for attention to states, normalised and scaled; None in a plain layer.
    """

    current: KeysValues
    queries: Array
    state_queries: Array | None


class Begun(NamedTuple):
    """Tokens halfway through a layer: self-attention done, states not yet met.

    Attributes:
      x: the layer's input, [B, N, E].
      heads: of self-attention, [B, N, H, D].
      state_queries: as in `Projections`.
    """

    x: Array
    heads: Array
    state_queries: Array | None


class SlidingWindowLayer(nnx.Module):
    """Each token attends to exactly the W tokens before it, then an MLP (paper, section 3.1).

    With segments of one window this is a Transformer-XL layer. `layer(x, cache)` takes and returns
    the keys and values of the last window, so that a document may be read in any number of calls.

    Args:
      config: sizes and positions; the fields of the state update are not looked at.
      attends_to_states: also attend to the states of a recurrent layer, given in each call.
      rngs: of the initial parameters.
    """

    def __init__(self, config: LayerConfig, *, attends_to_states: bool = False, rngs: nnx.Rngs):
        check_config(config, LayerConfig)
        check_rngs(rngs)
        size, heads_size = config.model_size, config.num_heads * config.head_size
        self.config = config
        self.norm = RMSNorm(size)
        self.keys = dense(size, heads_size, rngs=rngs)
        self.values = dense(size, heads_size, rngs=rngs)
        self.queries = dense(size, heads_size, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((config.num_heads,), jnp.float32))
        self.positions = make_positions(config.positions, config.num_heads, rngs=rngs)
        self.state_queries = dense(size, heads_size, rngs=rngs) if attends_to_states else None
        self.state_scale = (
            nnx.Param(jnp.ones((config.num_heads,), jnp.float32)) if attends_to_states else None
        )
        self.output = dense(heads_size * (1 + attends_to_states), size, rngs=rngs)
        self.mlp_norm = RMSNorm(size)
        self.mlp_hidden = dense(size, config.mlp_size, rngs=rngs)
        self.mlp_output = dense(config.mlp_size, size, rngs=rngs)

    def initial_state(self, batch_size: int) -> KeysValues:
        """The cache of a fresh document: zeros [B, W, H, D], which tokens do attend to."""
        check_batch_size(batch_size)
        config = self.config
        shape = (batch_size, config.window, config.num_heads, config.head_size)
        return empty_cache(shape, config.dtype)

    def __call__(
        self,
        x: Array,
        cache: KeysValues,
        states: KeysValues | None = None,
        *,
        dropout_key: Array | None = None,
    ) -> tuple[Array, KeysValues]:
        """Reads a segment.

        Args:
          x: [B, N, E], N a multiple of W.
          cache: keys and values of the window before the segment, [B, W, H, D].
          states: keys and values of the states for each block, [B, K, S, H, D]; given exactly when
            the layer attends to states.
          dropout_key: dropout is on when given.

        Returns:
          Output [B, N, E], and the cache for the next segment.

        Raises:
          ValueError: shapes that do not fit the configuration, or states given or left out wrongly.
        """
        config = self.config
        check_layer_input(config, x, cache)
        if states is not None:
            blocks = x.shape[1] // config.window
            shape = (x.shape[0], blocks, None, config.num_heads, config.head_size)
            check_keys_values("states", states, shape)
        project_key, begin_key, end_key = split_key(dropout_key, 3)
        projections = self.project(x, project_key)
        tiles = window_tiles(projections.current, cache)
        begun = self.begin(x, projections, tiles, begin_key)
        cache = last_window(projections.current, config.window)
        return self.end(begun, states, end_key), cache

    def project(self, x: Array, dropout_key: Array | None = None) -> Projections:
        """Norm, dropout, and keys, values and queries as one product; `x` is [B, T, E]."""
        normed = self.norm(x).astype(self.config.dtype)
        normed = dropout(normed, self.config.dropout, dropout_key)
        layers = [self.keys, self.values, self.queries]
        layers += [] if self.state_queries is None else [self.state_queries]
        keys, values, queries, *state_queries = (
            split_heads(y, self.config) for y in apply_dense(normed, *layers)
        )
        return Projections(
            KeysValues(l2_normalize(keys), values),
            scaled_queries(queries, self.scale),
            scaled_queries(state_queries[0], self.state_scale) if state_queries else None,
        )

    def begin(
        self,
        x: Array,
        projections: Projections,
        tiles: KeysValues,
        dropout_key: Array | None = None,
    ) -> Begun:
        """The first half of the layer: windowed self-attention.

        Args:
          x: [B, N, E].
          projections: of `x`.
          tiles: keys and values of each block and the one before, [B, K, 2W, H, D].
          dropout_key: dropout is on when given.
        """
        window = self.config.window
        bias = window_bias(self._scaled_bias())
        positions = np.arange(2 * window)
        queries = split_blocks(projections.queries, window)
        queries = self.positions.rotate(queries, positions[window:])
        tiles = tiles._replace(keys=self.positions.rotate(tiles.keys, positions))
        rate = self.config.dropout
        heads = attend(queries, tiles, bias, dropout_rate=rate, dropout_key=dropout_key)
        return Begun(x, join_blocks(heads), projections.state_queries)

    def end(
        self, begun: Begun, states: KeysValues | None = None, dropout_key: Array | None = None
    ) -> Array:
        """The second half: attention to the states, if any, output projection and MLP.

        Args:
          begun: from `begin`.
          states: keys and values for each block, [B, K, S, H, D]; given exactly when the layer
            attends to states. Neither mask nor bias: every token of a block sees all of them.
          dropout_key: dropout is on when given.

        Returns:
          The layer's output, [B, N, E].

        Raises:
          ValueError: states given or left out wrongly.
        """
        x, heads, state_queries = begun
        if (states is None) != (state_queries is None):
            raise ValueError("states must be given exactly when the layer attends to states")
        state_key, mlp_key = split_key(dropout_key, 2)
        if states is not None and state_queries is not None:
            window = heads.shape[1] // states.keys.shape[1]
            queries = split_blocks(state_queries, window)
            rate = self.config.dropout
            seen = attend(queries, states, dropout_rate=rate, dropout_key=state_key)
            heads = jnp.concatenate([heads, join_blocks(seen)], axis=-2)
        (attended,) = apply_dense(heads.reshape(*heads.shape[:-2], -1), self.output)
        x = x + attended
        (hidden,) = apply_dense(self.mlp_norm(x).astype(x.dtype), self.mlp_hidden)
        (update,) = apply_dense(jax.nn.relu(hidden), self.mlp_output)
        return x + dropout(update, self.config.dropout, mlp_key)

    def _scaled_bias(self) -> Array:
        return self.positions.bias(self.config.window) * jnp.abs(self.scale[...])[:, None]

    def step(
        self, x: Array, visible: KeysValues, states: KeysValues | None = None
    ) -> tuple[Array, KeysValues]:
        """Reads one token, as `__call__` would.

        Args:
          x: [B, 1, E].
          visible: keys and values of the W tokens before it, [B, W, H, D].
          states: keys and values of the states that entered its block, [B, 1, S, H, D], or None.

        Returns:
          Output [B, 1, E], and the token's own keys and values, [B, 1, H, D].
        """
        window = self.config.window
        projections = self.project(x)
        query = self.positions.rotate(projections.queries, np.array([window]))
        visible = visible._replace(keys=self.positions.rotate(visible.keys, np.arange(window)))
        heads = attend(query, visible, self._scaled_bias()[:, None])
        return self.end(Begun(x, heads, projections.state_queries), states), projections.current


def split_heads(x: Array, config: LayerConfig) -> Array:
    """[..., H*D] -> [..., H, D]."""
    return x.reshape(*x.shape[:-1], config.num_heads, config.head_size)


def scaled_queries(queries: Array, scale: nnx.Param | None) -> Array:
    """Queries [..., H, D] of length |scale_h|: the learned logit scale replaces 1/sqrt(D)."""
    assert scale is not None
    return l2_normalize(queries, jnp.abs(scale[...])[:, None])


def split_key(key: Array | None, parts: int) -> list[Array | None]:
    """Independent keys, or as many Nones; raises TypeError for what is no key."""
    check_key("dropout_key", key)
    return [None] * parts if key is None else list(jax.random.split(key, parts))
