"""The vanilla Transformer: segments of a fixed length, none of which knows of another."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent.baselines.relative import RelativeModel, newest
from block_recurrent.baselines.transformer_xl import RelativeState, empty_state
from block_recurrent.config import TransformerConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Key, Lengths, Tokens


class Transformer(RelativeModel):
    """A decoder-only Transformer on segments of `config.segment` tokens.

    A call reads whole segments, with no memory at all; or a part of one whose length divides the
    segment's, with a memory that is emptied at the segment's end. Both give the same logits.
    Documents are cut into segments from their start on; calls of one length, or of those that
    `next_length` gives, never cross a segment's end.

    Args:
      config: sizes.
      rngs: of the initial parameters.

    Example:
      >>> model = Transformer(config, rngs=nnx.Rngs(0))
      >>> logits, state = model(tokens, model.initial_state(batch_size=2))
    """

    kind = TransformerConfig
    config: TransformerConfig

    def initial_state(self, batch_size: int) -> RelativeState:
        """The state between two segments: nothing. Calls of less than a segment make it larger."""
        return empty_state(self.config, batch_size, places=0)

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        within = isinstance(state, RelativeState) and 0 not in state.memory.shape
        places = self.config.segment if within else 0
        like = jax.eval_shape(partial(empty_state, self.config, batch_size, places))
        checks.check_like("state", state, like)

    def start_like(self, state: RelativeState) -> RelativeState:
        """Zeros, also where a segment has begun."""
        return jax.tree.map(jnp.zeros_like, state)

    def read_segment(
        self,
        tokens: Tokens,
        state: RelativeState,
        dropout_key: Key | None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, RelativeState]:
        """The features and the next state.

        Raises:
          ValueError: N neither divides the segment nor is a multiple of it.
        """
        segment, (batch, length) = self.config.segment, tokens.shape
        if segment % length and length % segment:
            raise ValueError(
                f"a call of {length} tokens is neither whole segments of {segment} nor a part that "
                "divides one"
            )
        if length % segment == 0 and lengths is None:
            none = empty_state(self.config, batch, places=0)
            features, _ = self.read(
                tokens, none.memory, none.length[0], segment=segment, dropout_key=dropout_key
            )
            return features, state  # as it was between two segments: nothing has been read
        if state.memory.shape[2] == 0:
            state = empty_state(self.config, batch, segment)._replace(length=state.length)
        memory, filled = state
        several = length > segment  # only with lengths, and then all rows begin a segment
        # Before the call at most segment - length tokens of the segment have been read.
        unread = length if lengths is None else several * segment
        features, inputs = self.read(
            tokens,
            memory[:, :, unread:],
            filled[0],
            segment=segment if several else None,
            dropout_key=dropout_key,
        )
        read = length if lengths is None else lengths[None]
        return features, RelativeState(newest(memory, inputs, lengths), (filled + read) % segment)

    def next_length(self, state: RelativeState, available: int) -> int:
        """The largest divisor of the segment that also divides what was read of it."""
        segment, read = self.config.segment, np.unique(state.length)
        return next(
            length
            for length in range(min(available, segment), 0, -1)
            if segment % length == 0 and not np.any(read % length)
        )
