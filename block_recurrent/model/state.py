"""What is carried from one segment of a document to the next, and what tokens attend to.

Modules hold parameters only; memory goes in and comes out as these NamedTuples. Training treats the
incoming state as a constant, which is what truncates back-propagation.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Tree = TypeVar("Tree")


class KeysValues(NamedTuple):
    """Keys (normalised per head, not rotated) and values, each [..., T, H, D]."""

    keys: Array
    values: Array


class LayerState(NamedTuple):
    """Carried by a recurrent layer.

    Attributes:
      cache: keys and values of the last window, [B, W, H, D] in the activations' dtype.
      recurrent: state vectors, [B, S, E] float32.
    """

    cache: KeysValues
    recurrent: Array


class ModelState(NamedTuple):
    """Carried by the language model, or by some of its layers.

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


def take(tree: Tree, index: int | slice) -> Tree:
    """The entries `index` along the first axis of every array."""
    return jax.tree.map(lambda x: x[index], tree)


def add_axis(tree: Tree, axis: int = 0) -> Tree:
    """A new axis of size one in every array."""
    return jax.tree.map(lambda x: jnp.expand_dims(x, axis), tree)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of the same structure, joined array by array along a new first axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def concatenate(trees: Sequence[Tree], axis: int = 0) -> Tree:
    """Trees of the same structure, joined array by array."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *trees)
