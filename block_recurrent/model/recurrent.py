"""The block-recurrent layer: a segment of blocks, with only the state update in the loop."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.arguments import check_size
from block_recurrent.model.attention import KeysValues, last_window, window_tiles
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.checks import check_layer_state
from block_recurrent.model.sliding_window import split_key
from block_recurrent.model.state import LayerState


class BlockRecurrentLayer(nnx.Module):
    """A recurrent cell over all blocks of a segment (paper, sections 3.1 and 3.2).

    The states need the tokens through their keys and values alone, so everything on the token side
    is computed for all blocks at once, and the scan over blocks holds the state update and nothing
    else.

    Args:
      config: sizes, gate, wiring and positions.
      unroll: blocks per iteration of the scan.
      rngs: of the initial parameters.
    """

    def __init__(self, config: LayerConfig, *, unroll: int = 1, rngs: nnx.Rngs):
        check_size("unroll", unroll)
        self.config = config
        self.unroll = unroll
        self.cell = RecurrentCell(config, rngs=rngs)

    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states [B, S, E]."""
        return self.cell.initial_state(batch_size)

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
          ValueError: shapes that do not fit the configuration.
        """
        check_layer_state(self.config, x, state)
        tokens = self.cell.tokens
        project_key, begin_key, end_key = split_key(dropout_key, 3)
        projections = tokens.project(x, project_key)
        tiles = window_tiles(projections.current, state.cache)
        recurrent, states = self.scan_states(state.recurrent, tiles)
        begun = tokens.begin(x, projections, tiles, begin_key)
        cache = last_window(projections.current, self.config.window)
        return tokens.end(begun, states, end_key), LayerState(cache, recurrent)

    def scan_states(self, state: Array, tiles: KeysValues) -> tuple[Array, KeysValues]:
        """Moves the states over the blocks.

        Args:
          state: [B, S, E] float32, as it enters the first block.
          tiles: keys and values of each block and the one before, [B, K, 2W, H, D].

        Returns:
          The state after the last block, and the keys and values [B, K, S, H, D] of the states as
          they entered each block.
        """

        def step(state: Array, tokens: KeysValues) -> tuple[Array, KeysValues]:
            projections = self.cell.project(state)
            return self.cell.update(state, projections, tokens), projections.context

        by_block = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tiles)
        state, states = jax.lax.scan(step, state, by_block, unroll=self.unroll)
        return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), states)
