"""What all baselines share."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Key, Logits, Starts, Tokens
from block_recurrent.model.language_model import tied_logits
from block_recurrent.model.state import reset

LONGEST_CALL = 512


class BaselineModel(nnx.Module):
    """A language model with the protocol `Baseline`.

    A subclass adds `initial_state` and `read_segment`.

    Attributes:
      config: what it was built from, of the class `kind`.
      embedding: [V, E], of tokens coming in and going out.
    """

    kind: ClassVar[type]
    config: Any
    embedding: nnx.Param

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        checks.check_config(config, self.kind, rngs)
        self.config = config

    def initial_state(self, batch_size: int) -> Any:
        """The state at a document's start: zeros."""
        raise NotImplementedError

    def read_segment(
        self, tokens: Tokens, state: Any, dropout_key: Key | None
    ) -> tuple[Activations, Any]:
        """The features of a segment and the next state, of arguments that have been checked."""
        raise NotImplementedError

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        checks.check_state(self, state, batch_size)

    def __call__(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
    ) -> tuple[Logits, Any]:
        """Reads a segment of every row's document; arguments and results are those of `Model`."""
        features, state = self.features(
            tokens, state, start_of_document=start_of_document, dropout_key=dropout_key
        )
        return self.logits(features), state

    def features(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
    ) -> tuple[Activations, Any]:
        """Everything before the last product; arguments are those of a call."""
        checks.check_model_call(tokens, start_of_document, dropout_key)
        self.check_state(state, tokens.shape[0])
        if start_of_document is not None:
            zeros = jax.tree.map(jnp.zeros_like, state)
            state = reset(state, zeros, start_of_document, batch_axis=1)
        return self.read_segment(tokens, state, dropout_key)

    def logits(self, features: Activations) -> Logits:
        """The logits of the next token at each position."""
        return tied_logits(features, self.embedding[...].astype(self.config.dtype))

    def next_length(self, state: Any, available: int) -> int:
        """The largest power of two that is at most `available` and at most 512."""
        del state
        return min(LONGEST_CALL, 1 << (available.bit_length() - 1))
