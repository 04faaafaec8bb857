"""Segments cut into blocks of one window, and each block with the one before it.

Letters: B batch, N segment, W window, K = N / W blocks, H heads, D head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.state import KeysValues, Tree, concatenate


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
