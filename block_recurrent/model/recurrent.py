"""The block-recurrent layer: a segment of blocks, with only the state update in the loop."""

from flax import nnx
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.blocks import (
    flatten_heads,
    last_window,
    preceding_blocks,
    scan_blocks,
    swap_blocks_and_batch,
    unflatten_heads,
)
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.checks import (
    check_initial_state,
    check_layer,
    check_recurrent_call,
    checked,
)
from block_recurrent.model.sliding_window import split_key
from block_recurrent.model.state import KeysValues, LayerState, concatenate


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
