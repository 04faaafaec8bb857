"""Transformer-XL as its own paper has it (Dai et al. 2019, arXiv 1901.02860)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.baselines.relative import RelativeModel, newest
from block_recurrent.config import RelativeConfig, TransformerXLConfig
from block_recurrent.model.checks import (
    check_baseline,
    check_baseline_call,
    check_flat_state,
    check_initial_state,
    checked,
)
from block_recurrent.model.protocol import power_of_two
from block_recurrent.model.state import reset_to_zeros


class RelativeState(NamedTuple):
    """Carried by Transformer-XL and by the vanilla Transformer within a segment.

    Attributes:
      memory: the newest inputs of every layer, the last one at the end, [L, B, P, E].
      length: how many places of a row's memory hold something, [1, B] int32; the others are
        masked.
    """

    memory: Array
    length: Array

    @property
    def batch_size(self) -> int:
        """B."""
        return self.length.shape[1]


def empty_state(config: RelativeConfig, batch_size: int, places: int) -> RelativeState:
    """A memory of so many places in which nothing is."""
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

    config: TransformerXLConfig

    @checked(check_baseline(TransformerXLConfig))
    def __init__(self, config: TransformerXLConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)

    @checked(check_initial_state)
    def initial_state(self, batch_size: int) -> RelativeState:
        """The state at a document's start: a memory in which nothing is."""
        return empty_state(self.config, batch_size, self.config.memory)

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        check_flat_state(state, jax.eval_shape(partial(self.initial_state, batch_size)))

    @checked(check_baseline_call)
    def features(
        self,
        tokens: Array | np.ndarray,
        state: RelativeState,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, RelativeState]:
        """All but the last product of a call, whose arguments it takes.

        Raises:
          ValueError: the call is longer than a segment, and N no multiple of it.
        """
        config, length = self.config, tokens.shape[1]
        segment = min(config.segment or length, length)
        if length % segment:
            raise ValueError(f"a call of {length} tokens is not whole segments of {segment}")
        memory, filled = reset_to_zeros(state, start_of_document)
        features, inputs = self.read(
            tokens,
            memory,
            filled[0],
            segment=segment,
            span=config.memory if config.same_length else None,
            largest=config.largest_distance,
            dropout_key=dropout_key,
        )
        filled = jnp.minimum(filled + length, config.memory)
        return features, RelativeState(newest(memory, inputs), filled)

    def next_length(self, state: RelativeState, available: int) -> int:
        """A power of two, at most 512 and at most a segment."""
        del state
        return power_of_two(min(available, self.config.segment or available))
