"""What is carried from one segment of a document to the next, and segments cut into blocks.

Modules hold parameters only; memory goes in and comes out as these NamedTuples. Training treats the
incoming state as a constant, which truncates back-propagation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from block_recurrent.model import checks
from block_recurrent.model.array_types import Starts, States, Vectors

Tree = TypeVar("Tree")


class KeysValues(NamedTuple):
    """Keys (normalised per head, not rotated) and values."""

    keys: Vectors
    values: Vectors


class LayerState(NamedTuple):
    """Carried by a recurrent layer.

    Attributes:
      cache: keys and values of the last window, [B, W, H, D] in the activations' dtype.
      recurrent: state vectors.
    """

    cache: KeysValues
    recurrent: States


class ModelState(NamedTuple):
    """Carried by the language model, or by some of its layers.

    Attributes:
      cache: keys and values of every layer's last window, [L, B, W, H, D].
      recurrent: states of the recurrent layers, lowest first; R may be 0.
    """

    cache: KeysValues
    recurrent: Float32[Array, "R B S E"]

    @property
    def batch_size(self) -> int:
        """B."""
        return self.recurrent.shape[1]

    @property
    def axes(self) -> "ModelState":
        """The letters of every array's axes; H is the axis of heads."""
        return ModelState(KeysValues("LBWHD", "LBWHD"), "RBSE")  # type: ignore[arg-type]


def reset(state: Tree, initial: Tree, start: Starts, *, batch_axis: int = 0) -> Tree:
    """Replaces the rows of `state` where `start` is true by those of `initial`.

    `batch_axis` is 0 for the state of a layer and 1 for that of the model.

    Raises:
      TypeError: `initial` is of another kind than `state`, or `start` is no bool array.
      ValueError: shapes that do not fit one another.
    """
    checks.check_array("start", start, "B", np.bool_)
    checks.check_like("initial", initial, state)
    for array in jax.tree.leaves(state):
        if array.shape[batch_axis : batch_axis + 1] != start.shape:
            raise ValueError(
                f"start has {len(start)} rows, but an array of the state has shape {array.shape} "
                f"with its rows on batch_axis = {batch_axis}"
            )

    def select(old: Array, new: Array) -> Array:
        after = (1,) * (len(old.shape) - batch_axis - 1)
        return jnp.where(start.reshape((1,) * batch_axis + (-1, *after)), new, old)

    return jax.tree.map(select, state, initial)


def clear_recurrent(state: Any, initial: Any) -> ModelState:
    """A `ModelState` with the recurrent states of `initial`; keys and values stay."""
    return state._replace(recurrent=initial.recurrent)


# Trees of arrays.


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


# Blocks of one window.


def split_blocks(tree: Tree, window: int) -> Tree:
    """Cuts the arrays of a segment into blocks, [B, N, ...] -> [B, K, W, ...]."""
    return jax.tree.map(lambda x: x.reshape(len(x), -1, window, *x.shape[2:]), tree)


def join_blocks(tree: Tree) -> Tree:
    """Inverse of `split_blocks`."""
    return jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[3:]), tree)


def swap_blocks_and_batch(tree: Tree) -> Tree:
    """Arrays [B, K, ...] as [K, B, ...] for a scan over blocks, and back again."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def with_preceding(
    blocks: KeysValues, previous: KeysValues, *, detached: bool = False
) -> KeysValues:
    """The keys and values of each block after those of the window before it.

    Args:
      blocks: of the segment, [B, K, W, ...].
      previous: of the window before the segment, [B, W, ...].
      detached: no gradient reaches the keys and values of the window before a block.

    Returns:
      Arrays [B, K, 2W, ...].
    """
    preceding = jax.tree.map(
        lambda x, before: jnp.concatenate([before[:, None], x[:, :-1]], axis=1), blocks, previous
    )
    preceding = jax.lax.stop_gradient(preceding) if detached else preceding
    return concatenate([preceding, blocks], axis=2)


def concatenate_windows(preceding: KeysValues, current: KeysValues) -> KeysValues:
    """Two windows as one, [..., W, H, D] -> [..., 2W, H, D]."""
    flat = concatenate([flatten_heads(preceding), flatten_heads(current)], axis=-2)
    return unflatten_heads(flat, current.keys.shape[-2])


def last_window(current: KeysValues, window: int) -> KeysValues:
    """The last W keys and values of a segment, [B, N, H, D] -> [B, W, H, D]."""
    heads = current.keys.shape[-2]
    return unflatten_heads(jax.tree.map(lambda x: x[:, -window:], flatten_heads(current)), heads)


def flatten_heads(tree: Tree) -> Tree:
    """Arrays [..., H, D] -> [..., H*D], the layout of projections.

    Slices and concatenations should have this layout: with an axis of heads a TPU transposes the
    whole array first.
    """
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), tree)


def unflatten_heads(tree: Tree, num_heads: int) -> Tree:
    """Inverse of `flatten_heads`."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-1], num_heads, -1), tree)
