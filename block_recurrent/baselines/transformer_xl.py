"""Transformer-XL as its own paper has it (Dai et al. 2019, arXiv 1901.02860)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from block_recurrent.baselines.relative import RelativeModel, newest
from block_recurrent.config import RelativeConfig, TransformerXLConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Key, Lengths, Tokens


class RelativeState(NamedTuple):
    """Carried by Transformer-XL and by the vanilla Transformer within a segment.

    Attributes:
      memory: the newest inputs of every layer, the last one at the end.
      length: how many entries of a row's memory hold something; the others are masked.
    """

    memory: Float[Array, "L B P E"]
    length: Int32[Array, "1 B"]

    @property
    def batch_size(self) -> int:
        """B."""
        return self.length.shape[1]

    @property
    def axes(self) -> "RelativeState":
        """The letters of every array's axes."""
        return RelativeState("LBPE", "1B")  # type: ignore[arg-type]


def empty_state(config: RelativeConfig, batch_size: int, places: int) -> RelativeState:
    """A memory with `places` entries, none of which holds anything."""
    checks.check_size("batch_size", batch_size)
    shape = (config.num_layers, batch_size, places, config.model_size)
    return RelativeState(jnp.zeros(shape, config.dtype), jnp.zeros((1, batch_size), jnp.int32))


class TransformerXL(RelativeModel):
    """Transformer-XL: layers that also read a memory of their own earlier inputs.

    No gradient flows into the memory. A call longer than `config.segment` is several segments.
    Without `same_length` a token sees the memory and what its segment has before it, so that the
    length of segments has an influence on the logits: the paper evaluates, and `br.generate`
    generates, in shorter ones than those of training. With `same_length` splitting a document into
    calls anywhere gives the same logits.

    Args:
      config: sizes, and what is remembered.
      rngs: of the initial parameters.

    Example:
      >>> model = TransformerXL(config, rngs=nnx.Rngs(0))
      >>> logits, state = model(tokens, model.initial_state(batch_size=2))
    """

    kind = TransformerXLConfig
    config: TransformerXLConfig

    def initial_state(self, batch_size: int) -> RelativeState:
        """The state at a document's start: an empty memory."""
        return empty_state(self.config, batch_size, self.config.memory)

    def read_segment(
        self,
        tokens: Tokens,
        state: RelativeState,
        dropout_key: Key | None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, RelativeState]:
        """The features and the next state.

        Raises:
          ValueError: the call is longer than a segment, and N no multiple of it.
        """
        config, length = self.config, tokens.shape[1]
        segment = min(config.segment or length, length)
        if length % segment:
            raise ValueError(f"a call of {length} tokens is not whole segments of {segment}")
        memory, filled = state
        features, inputs = self.read(
            tokens,
            memory,
            filled[0],
            segment=segment,
            span=config.memory if config.same_length else None,
            largest=None if config.clamp_length == -1 else config.clamp_length,
            dropout_key=dropout_key,
        )
        read = length if lengths is None else lengths[None]
        filled = jnp.minimum(filled + read, config.memory)
        return features, RelativeState(newest(memory, inputs, lengths), filled)

    def next_length(self, state: RelativeState, available: int) -> int:
        """A power of two, at most 512 and at most a segment."""
        return super().next_length(state, min(available, self.config.segment or available))
