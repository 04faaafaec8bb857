"""Attention for NVIDIA GPUs: cuDNN's fused kernels, with blocks folded into the batch.

cuDNN takes bfloat16 only. The mask is part of the bias, which is bfloat16 too: a float32 bias has
given gradients that are not numbers (jax#32242). It cannot be traced without a GPU or its plugin.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from block_recurrent.config import LayerConfig
from block_recurrent.model.array_types import Blocks, DistanceBias, Key
from block_recurrent.model.attention import reference
from block_recurrent.model.attention.choice import Attention, AttentionImpossible
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, concatenate_windows, preceding_blocks

LEAST_HEAD, MOST_HEAD = 8, 128  # head sizes are multiples of the first, up to the second
HIDDEN = -1e9  # added to the logit of a key that a query does not see; infinity gives NaN


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation.

    Raises:
      AttentionImpossible: not on a GPU, or cuDNN has no kernel for the layer.
    """
    size = config.head_size
    if platform != "gpu":
        reason = f"needs a GPU, but this model is built for a {platform.upper()}"
    elif config.dtype != "bfloat16":
        reason = f"needs dtype 'bfloat16', not {config.dtype!r}"
    elif config.dropout > 0:
        reason = f"has no dropout, but dropout is {config.dropout}"
    elif config.window % 2:
        reason = f"needs an even window, not {config.window}"
    elif size % LEAST_HEAD or size > MOST_HEAD:
        reason = (
            f"needs a head_size that is a multiple of {LEAST_HEAD} and at most {MOST_HEAD}, "
            f"not {size}"
        )
    else:
        return Attention(attend, attend_window)
    raise AttentionImpossible(reason)


class Folded(NamedTuple):
    """The arguments of the kernels, for the G blocks of all batch rows."""

    queries: Float[Array, "G Q H D"]
    keys: Float[Array, "G T H D"]
    values: Float[Array, "G T H D"]
    bias: Float[Array, "1 H Q T"] | None


def attend(
    queries: Float[Array, "... Q H D"],
    context: KeysValues,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
) -> Float[Array, "... Q H D"]:
    """As `reference.attend` without bias and dropout; a single query takes the reference itself."""
    del dropout_rate, dropout_key
    if queries.shape[-3] == 1:
        return reference.attend(queries, context)
    return _attend(fold(queries, context)).reshape(queries.shape)


def attend_window(
    queries: Blocks,
    current: KeysValues,
    previous: KeysValues,
    bias: DistanceBias,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
) -> Blocks:
    """As `reference.attend_window` without dropout."""
    del dropout_rate, dropout_key
    preceding = preceding_blocks(current, previous, detached=detached)
    tile = concatenate_windows(preceding, current)
    return _attend(fold(queries, tile, bias)).reshape(queries.shape)


def fold(
    queries: Float[Array, "... Q H D"], context: KeysValues, bias: DistanceBias | None = None
) -> Folded:
    """Folds all leading axes into one and lays the bias onto the tile of a block."""
    folded = (x.reshape(-1, *x.shape[-3:]) for x in (queries, context.keys, context.values))
    queries, keys, values = folded
    if bias is None:
        return Folded(queries, keys, values, None)
    tile = jnp.maximum(window_bias(bias), HIDDEN).astype(queries.dtype)
    return Folded(queries, keys, values, tile[None])


def _attend(folded: Folded) -> Float[Array, "G Q H D"]:
    # The queries are scaled already.
    return jax.nn.dot_product_attention(*folded, scale=1.0, implementation="cudnn")
