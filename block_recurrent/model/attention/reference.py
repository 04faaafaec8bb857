"""Attention in a few lines of array arithmetic, which all other implementations must match."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32

from block_recurrent.config import LayerConfig
from block_recurrent.model.array_types import Blocks, DistanceBias, Key, TileBias
from block_recurrent.model.attention.choice import Attention
from block_recurrent.model.layers import dropout
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, with_preceding


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation, which suits every layer and platform."""
    del config, platform
    return Attention(attend, attend_window)


def attend(
    queries: Float[Array, "... Q H D"],
    context: KeysValues,
    bias: TileBias | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
) -> Float[Array, "... Q H D"]:
    """Softmax attention, the softmax in float32.

    Args:
      queries: already scaled.
      context: keys and values, [..., T, H, D].
      bias: added to the logits; minus infinity hides a key.
      dropout_rate: fraction of the probabilities dropped when `dropout_key` is given.
      dropout_key: None for no dropout.

    Returns:
      The attended values, in their dtype.
    """
    # Heads first and positions last, and the division after the product: on a CPU a training step
    # with another layout takes up to twice as long.
    queries = jnp.einsum("...qhd->...hqd", queries)
    keys = jnp.einsum("...thd->...hdt", context.keys)
    values = jnp.einsum("...thd->...hdt", context.values)
    logits = jnp.einsum("...hqd,...hdt->...hqt", queries, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = add_shared(logits, bias)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = dropout(weights, dropout_rate, dropout_key, weights.ndim - 3).astype(values.dtype)
    heads = jnp.einsum("...hqt,...hdt->...hqd", weights, values, preferred_element_type=jnp.float32)
    return jnp.einsum("...hqd->...qhd", (heads / total).astype(values.dtype))


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
    """Attention of every token of a segment to the W tokens before it.

    Args:
      queries: already scaled.
      current: keys and values of the blocks, [B, K, W, H, D].
      previous: those of the window before the first block, [B, W, H, D].
      bias: added to the logits.
      detached: no gradient reaches the keys and values of the window before a block.
      dropout_rate: fraction of the probabilities dropped when `dropout_key` is given.
      dropout_key: None for no dropout.

    Returns:
      The attended values, in their dtype.
    """
    context = with_preceding(current, previous, detached=detached)
    return attend(
        queries, context, window_bias(bias), dropout_rate=dropout_rate, dropout_key=dropout_key
    )


def probabilities(
    logits: Float32[Array, "... Q T"], visible: Bool[Array, "... Q T"] | None = None
) -> Float32[Array, "... Q T"]:
    """The softmax over the visible keys, where the probabilities themselves are wanted."""
    if visible is not None:
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


@jax.custom_vjp
def add_shared(x: Float32[Array, "... H Q T"], shared: TileBias) -> Float32[Array, "... H Q T"]:
    """`x + shared`, whose gradient sums over the leading axes by a matrix product.

    As a reduction that sum takes XLA:CPU longer than the attention itself.
    """
    return x + jax.lax.broadcast_to_rank(shared, x.ndim)


def _add_shared_forward(x: Array, shared: Array) -> tuple[Array, None]:
    return add_shared(x, shared), None


def _add_shared_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    return gradient, sum_leading(gradient)


add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def sum_leading(x: Float32[Array, "... H Q T"]) -> TileBias:
    """The sum over all but the last three axes, as a matrix product."""
    shape = x.shape[-3:]
    rows = x.reshape(-1, math.prod(shape))
    return (jnp.ones(rows.shape[:1], rows.dtype) @ rows).reshape(shape)
