"""The stack of layers: Transformer-XL, sliding-window and recurrent models alike."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.feedback import read_with_feedback
from block_recurrent.model.layer_stack import (
    Part,
    join_states,
    make_parts,
    part_ranges,
    split_state,
)
from block_recurrent.model.state import KeysValues, ModelState


class Stack(nnx.Module):
    """All layers between the embedding and the final norm.

    Attributes:
      parts: bottom up; neighbouring plain layers are one part, a recurrent layer is one.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.parts = nnx.List(make_parts(config, rngs))
        self._read = read_with_feedback if config.feedback else read_in_order

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
        x, states = self._read(self.config, self.parts, x, states, keys)
        return x, join_states(states)

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


def read_in_order(
    config: ModelConfig,
    parts: Sequence[Part],
    x: Array,
    states: Sequence[ModelState],
    dropout_keys: Sequence[Array | None],
) -> tuple[Array, list[ModelState]]:
    """Reads a segment with one part after the other; arguments as `read_with_feedback` takes."""
    del config
    next_states = []
    for part, state, keys in zip(parts, states, dropout_keys, strict=True):
        x, state = part(x, state, dropout_keys=keys)
        next_states.append(state)
    return x, next_states
