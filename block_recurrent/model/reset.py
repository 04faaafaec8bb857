"""Beginning anew: rows of a state that start a document, or states that are cleared."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.model.checks import check_reset, checked
from block_recurrent.model.state import ModelState

State = TypeVar("State")


@checked(check_reset)
def reset(state: State, initial: State, start: Array | np.ndarray, *, batch_axis: int = 0) -> State:
    """Replaces the rows of `state` where `start` [B] is true by those of `initial`.

    `batch_axis` is 0 for the state of a layer and 1 for that of the model.

    Raises:
      TypeError: `initial` is of another kind than `state`.
      ValueError: shapes that do not fit one another, or a `start` that is no bool array.
    """

    def select(old: Array, new: Array) -> Array:
        shape = [1] * old.ndim
        shape[batch_axis] = -1
        return jnp.where(start.reshape(shape), new, old)

    return jax.tree.map(select, state, initial)


def reset_to_zeros(state: State, start: Array | np.ndarray | None) -> State:
    """Zeros in the rows of a model's state where `start` [B] is true; None for no row."""
    if start is None:
        return state
    return reset(state, jax.tree.map(jnp.zeros_like, state), start, batch_axis=1)


def clear_recurrent(state: Any, initial: Any) -> ModelState:
    """A `ModelState` with the recurrent states of `initial`; keys and values stay."""
    return state._replace(recurrent=initial.recurrent)
