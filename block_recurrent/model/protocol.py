"""What training, evaluation, runs and reports rely on: any language model, not only ours."""

from typing import Any, Protocol

import numpy as np
from jax import Array

from block_recurrent.config import AnyModelConfig


class CarriedState(Protocol):
    """What a model carries from one segment to the next.

    A NamedTuple of arrays, also nested, every one of which has the batch on its axis 1, so that
    rows can be reset, shared out over devices and saved whatever the model is.
    """

    @property
    def batch_size(self) -> int:
        """B."""
        ...


class Model(Protocol):
    """A language model: a pytree of parameters, and a configuration.

    Memory goes in and comes out; dropout is on exactly when a key is given.
    """

    @property
    def config(self) -> AnyModelConfig:
        """What it was built from."""
        ...

    def initial_state(self, batch_size: int) -> Any:
        """The `CarriedState` at a document's start, of B rows."""
        ...

    def __call__(
        self,
        tokens: Array | np.ndarray,
        state: Any,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Any]:
        """Reads a segment of every row's document.

        Args:
          tokens: [B, N] integers in [0, V).
          state: from `initial_state`, or from the call before.
          start_of_document: [B] bool, rows that begin a document with this segment: their state is
            replaced by the initial one. None for no row.
          dropout_key: dropout is on when given.

        Returns:
          Logits [B, N, V] float32, those at position p for the token at p + 1; and the state for
          the next segment.
        """
        ...

    def features(
        self,
        tokens: Array | np.ndarray,
        state: Any,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Any]:
        """All but the last product: features [B, N, E], and the next state."""
        ...

    def logits(self, features: Array) -> Array:
        """[B, N, E] -> [B, N, V] float32."""
        ...


class Baseline(Model, Protocol):
    """A model that reads single tokens by `features` itself, which is how it generates."""

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        ...

    def next_length(self, state: Any, available: int) -> int:
        """How many tokens a call from `state` should read where so many are there, 1 at least.

        A few different numbers in all, so that few programs are compiled.
        """
        ...


LONGEST_CALL = 512


def power_of_two(available: int) -> int:
    """The largest power of two of at most so many tokens and at most 512: a `next_length`."""
    return min(LONGEST_CALL, 1 << (available.bit_length() - 1))
