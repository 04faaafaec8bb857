"""What is carried from one segment of a document to the next, and segments cut into blocks.

Modules hold parameters only; memory goes in and comes out as these NamedTuples. Training treats the
incoming state as a constant, which truncates back-propagation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.model import checks

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


def split_blocks(x: Array, window: int) -> Array:
    """[B, N, ...] -> [B, K, W, ...]."""
    batch, length, *rest = x.shape
    return x.reshape(batch, length // window, window, *rest)


def join_blocks(x: Array) -> Array:
    """[B, K, W, ...] -> [B, N, ...]."""
    batch, blocks, window, *rest = x.shape
    return x.reshape(batch, blocks * window, *rest)


def swap_blocks_and_batch(tree: Tree) -> Tree:
    """Arrays [B, K, ...] as [K, B, ...] for a scan over blocks, and back again."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def scan_blocks(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any,
    *,
    unroll: int,
    recompute: bool,
) -> tuple[Any, Any]:
    """A `jax.lax.scan` over blocks, arrays [K, B, ...].

    Args:
      step: takes the carry and one block of the inputs.
      carry: before the first block.
      inputs: of all blocks.
      unroll: blocks per iteration.
      recompute: the backward pass computes each step again, so that the scan keeps the carries
        and nothing else.
    """
    if recompute:
        # Inside a loop nothing merges the two computations; where none is left, something may.
        step = jax.checkpoint(step, prevent_cse=unroll > 1)
    return jax.lax.scan(step, carry, inputs, unroll=unroll)


def preceding_blocks(
    blocks: KeysValues, previous: KeysValues, *, detached: bool = False
) -> KeysValues:
    """What comes one window before each block.

    Args:
      blocks: of the segment, [B, K, W, ...].
      previous: of the window before the segment, [B, W, ...].
      detached: no gradient reaches it.

    Returns:
      [B, K, W, ...]: the previous window, then all blocks but the last.
    """
    preceding = jax.tree.map(
        lambda x, before: jnp.concatenate([before[:, None], x[:, :-1]], axis=1), blocks, previous
    )
    return jax.lax.stop_gradient(preceding) if detached else preceding


def concatenate_windows(preceding: KeysValues, current: KeysValues) -> KeysValues:
    """Two windows, or two of each block, [..., W, H, D] -> [..., 2W, H, D]."""
    return concatenate([preceding, current], axis=-3)


def last_window(current: KeysValues, window: int) -> KeysValues:
    """The last W keys and values of a segment, [B, N, H, D] -> [B, W, H, D]."""
    heads = current.keys.shape[-2]
    return unflatten_heads(jax.tree.map(lambda x: x[:, -window:], flatten_heads(current)), heads)


def flatten_heads(context: KeysValues) -> KeysValues:
    """[..., H, D] -> [..., H*D], how projections come.

    What is cut and joined should lie so: with an axis of heads a TPU turns all of it round first.
    """
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), context)


def unflatten_heads(context: KeysValues, num_heads: int) -> KeysValues:
    """Inverse of `flatten_heads`."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-1], num_heads, -1), context)


def reset(state: Tree, initial: Tree, start: Array | np.ndarray, *, batch_axis: int = 0) -> Tree:
    """Replaces the rows of `state` where `start` [B] is true by those of `initial`.

    `batch_axis` is 0 for the state of a layer and 1 for that of the model.

    Raises:
      TypeError: `initial` is of another kind than `state`.
      ValueError: shapes that do not fit one another, or a `start` that is no bool array.
    """

    checks.check_reset(state, initial, start, batch_axis=batch_axis)

    def select(old: Array, new: Array) -> Array:
        shape = [1] * old.ndim
        shape[batch_axis] = -1
        return jnp.where(start.reshape(shape), new, old)

    return jax.tree.map(select, state, initial)


def reset_to_zeros(state: Tree, start: Array | np.ndarray | None) -> Tree:
    """Zeros in the rows of a model's state where `start` [B] is true; None for no row."""
    if start is None:
        return state
    return reset(state, jax.tree.map(jnp.zeros_like, state), start, batch_axis=1)


def clear_recurrent(state: Any, initial: Any) -> ModelState:
    """A `ModelState` with the recurrent states of `initial`; keys and values stay."""
    return state._replace(recurrent=initial.recurrent)
