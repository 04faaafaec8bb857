"""Attention for NVIDIA GPUs: their library's fused kernels, on blocks folded into the batch.

It takes bfloat16 only, its bias too, which carries the mask. A float32 bias has given gradients
that are not numbers (jax#32242). Without a GPU, or the plugin of one, it cannot be traced.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.attention import reference
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, concatenate_windows, preceding_blocks

LEAST_HEAD, MOST_HEAD = 8, 128  # sizes of heads are multiples of one, up to the other
HIDDEN = -1e9  # added to the logit of a key that a query does not see; infinity gives no numbers
Library = Literal["cudnn", "xla"]


class Folded(NamedTuple):
    """What the library takes.

    Attributes:
      queries: [G, Q, H, D], G blocks of all lanes.
      keys: [G, T, H, D].
      values: [G, T, H, D].
      bias: [1, H, Q, T] in the dtype of the queries, or None.
    """

    queries: Array
    keys: Array
    values: Array
    bias: Array | None


def attend(
    queries: Array,
    context: KeysValues,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    library: Library = "cudnn",
) -> Array:
    """As `reference.attend` without a bias and dropout; that itself of a single query."""
    del dropout_rate, dropout_key
    if queries.shape[-3] == 1:
        return reference.attend(queries, context)
    return _attend(fold(queries, context), library).reshape(queries.shape)


def attend_window(
    queries: Array,
    current: KeysValues,
    previous: KeysValues,
    bias: Array,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    library: Library = "cudnn",
) -> Array:
    """As `reference.attend_window` without dropout."""
    del dropout_rate, dropout_key
    preceding = preceding_blocks(current, previous, detached=detached)
    tile = concatenate_windows(preceding, current)
    return _attend(fold(queries, tile, bias), library).reshape(queries.shape)


def fold(queries: Array, context: KeysValues, bias: Array | None = None) -> Folded:
    """Blocks into the batch, [..., T, H, D] -> [G, T, H, D], and `bias` [H, W] onto the tile."""
    folded = (x.reshape(-1, *x.shape[-3:]) for x in (queries, context.keys, context.values))
    queries, keys, values = folded
    if bias is None:
        return Folded(queries, keys, values, None)
    tile = jnp.maximum(window_bias(bias), HIDDEN).astype(queries.dtype)
    return Folded(queries, keys, values, tile[None])


def _attend(folded: Folded, library: Library) -> Array:
    """The queries are scaled already."""
    return jax.nn.dot_product_attention(*folded, scale=1.0, implementation=library)
