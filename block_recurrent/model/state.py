"""What is carried from one segment of a document to the next.

Modules hold parameters only; memory goes in and comes out as these NamedTuples. Training treats the
incoming state as a constant, which is what truncates back-propagation.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.model.arguments import check_array
from block_recurrent.model.attention import KeysValues

State = TypeVar("State")


class LayerState(NamedTuple):
    """Carried by a recurrent layer.

    Attributes:
      cache: keys and values of the last window, [B, W, H, D] in the activations' dtype.
      recurrent: state vectors, [B, S, E] float32.
    """

    cache: KeysValues
    recurrent: Array


class ModelState(NamedTuple):
    """Carried by the language model.

    Attributes:
      cache: keys and values of every layer's last window, [L, B, W, H, D].
      recurrent: states of the recurrent layers, lowest first, [R, B, S, E] float32; R may be 0.
    """

    cache: KeysValues
    recurrent: Array

    @property
    def batch_size(self) -> int:
        """B."""
        return self.recurrent.shape[1]


def empty_cache(shape: tuple[int, ...], dtype: str) -> KeysValues:
    """The keys and values of a fresh document: zeros."""
    return KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def clear_recurrent(state: ModelState, initial: ModelState) -> ModelState:
    """`state` with the recurrent states of `initial`; keys and values stay."""
    return state._replace(recurrent=initial.recurrent)


def reset(state: State, initial: State, start: Array | np.ndarray, *, batch_axis: int = 0) -> State:
    """Replaces the rows of `state` where `start` [B] is true by those of `initial`.

    `batch_axis` is 0 for the state of a layer and 1 for that of the model.

    Raises:
      TypeError: `initial` is of another kind than `state`.
      ValueError: shapes that do not fit one another, or a `start` that is no bool array.
    """
    check_array("start", start, (None,), "bool")
    if jax.tree.structure(initial) != jax.tree.structure(state):
        raise TypeError(f"initial must be a {type(state).__name__} as state is, not {initial!r}")

    def select(old: Array, new: Array) -> Array:
        if not 0 <= batch_axis < old.ndim or old.shape[batch_axis] != len(start):
            raise ValueError(
                f"start has {len(start)} rows, but in the state, whose rows lie along batch_axis = "
                f"{batch_axis}, is an array of shape {old.shape}"
            )
        check_array("an array of initial", new, old.shape)
        shape = [1] * old.ndim
        shape[batch_axis] = -1
        return jnp.where(start.reshape(shape), new, old)

    return jax.tree.map(select, state, initial)
