"""Attention for NVIDIA GPUs: cuDNN's fused kernels, with blocks folded into the batch.

cuDNN takes bfloat16 only. The mask is part of the bias, which is bfloat16 too: a float32 bias has
given gradients that are not numbers (jax#32242). It cannot be traced without a GPU or its plugin.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from block_recurrent.config import LayerConfig
from block_recurrent.model.array_types import Blocks, DistanceBias, Key
from block_recurrent.model.attention import reference
from block_recurrent.model.attention.choice import (
    Attention,
    AttentionImpossible,
    device_kind,
)
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, with_preceding

LEAST_HEAD, MOST_HEAD = 8, 128  # head sizes are multiples of the first, up to the second
LEAST_CAPABILITY = 8.0  # NVIDIA's number of a generation: Ampere
HIDDEN = -1e9  # added to the logit of a key that a query does not see; infinity gives NaN


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation.

    Raises:
      AttentionImpossible: not on a GPU, or cuDNN has no kernel for the layer.
    """
    size = config.head_size
    capability = device_kind(unknown=str(LEAST_CAPABILITY))
    if platform != "gpu":
        reason = f"needs a GPU, but this model is built for a {platform.upper()}"
    elif not _suits(capability):
        reason = (
            f"needs an NVIDIA GPU with compute capability {LEAST_CAPABILITY} or more, "
            f"not {capability}"
        )
    elif config.dtype != "bfloat16":
        reason = f"needs dtype 'bfloat16', not {config.dtype!r}"
    elif config.attention_rate > 0:
        reason = (
            f"has no dropout, but that of attention is {config.attention_rate} "
            "(model.attention_dropout = 0.0 turns it off)"
        )
    elif config.window % 2:
        reason = f"needs an even window, not {config.window}"
    elif size % LEAST_HEAD or size > MOST_HEAD:
        reason = (
            f"needs a head_size that is a multiple of {LEAST_HEAD} and at most {MOST_HEAD}, "
            f"not {size}"
        )
    else:
        return ATTENTION
    raise AttentionImpossible(reason)


def _suits(capability: str) -> bool:
    try:
        return float(capability) >= LEAST_CAPABILITY
    except ValueError:  # of another maker
        return False


def attend(queries: Float[Array, "... Q H D"], context: KeysValues) -> Float[Array, "... Q H D"]:
    """As `reference.attend` without bias and dropout; a single query takes the reference itself."""
    if queries.shape[-3] == 1:
        return reference.attend(queries, context)
    return _attend(queries, context, None)


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
    context = with_preceding(current, previous, detached=detached)
    return _attend(queries, context, make_bias(bias, queries.dtype))


def make_bias(bias: DistanceBias, dtype: jnp.dtype) -> Float[Array, "1 H W 2W"]:
    """The bias of a block, with the mask; all numbers are finite."""
    return jnp.maximum(window_bias(bias), HIDDEN).astype(dtype)[None]


def _attend(queries: Array, context: KeysValues, bias: Array | None) -> Array:
    """Folds all leading axes into one. The queries are scaled already."""
    folded, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (queries, *context))
    attended = jax.nn.dot_product_attention(
        folded, keys, values, bias, scale=1.0, implementation="cudnn"
    )
    return attended.reshape(queries.shape)


# Built once, because models compare equal only if they hold the same functions.
ATTENTION = Attention(attend, attend_window)
