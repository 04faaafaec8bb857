"""Attention as a few lines of array arithmetic: it runs everywhere, and all others must match it.

Letters: B lanes, K blocks, W window, Q queries, T keys, H heads, D head size. Heads stand second to
last, `[..., H, D]`, wherever queries, keys and values are passed.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.layers import dropout
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, concatenate_windows, preceding_blocks


def attend(
    queries: Array,
    context: KeysValues,
    bias: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Softmax attention, the softmax in float32.

    Args:
      queries: [..., Q, H, D], already scaled.
      context: keys and values, [..., T, H, D].
      bias: [H, Q, T] float32 added to the logits; minus infinity hides a key.
      dropout_rate: share of the probabilities dropped when `dropout_key` is given.
      dropout_key: None for no dropout.

    Returns:
      [..., Q, H, D] in the dtype of the values.
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
    weights = dropout(weights, dropout_rate, dropout_key).astype(values.dtype)
    heads = jnp.einsum("...hqt,...hdt->...hqd", weights, values, preferred_element_type=jnp.float32)
    return jnp.einsum("...hqd->...qhd", (heads / total).astype(values.dtype))


def attend_window(
    queries: Array,
    current: KeysValues,
    previous: KeysValues,
    bias: Array,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Attention of every token of a segment to the W tokens before it.

    Args:
      queries: of K blocks, [B, K, W, H, D], already scaled.
      current: keys and values of the blocks, [B, K, W, H, D].
      previous: those of the window before the first block, [B, W, H, D].
      bias: [H, W] float32, added to the logits at distances W to 1.
      detached: no gradient reaches the keys and values of the window before a block.
      dropout_rate: share of the probabilities dropped when `dropout_key` is given.
      dropout_key: None for no dropout.

    Returns:
      [B, K, W, H, D] in the dtype of the values.
    """
    preceding = preceding_blocks(current, previous, detached=detached)
    tile = concatenate_windows(preceding, current)
    return attend(
        queries, tile, window_bias(bias), dropout_rate=dropout_rate, dropout_key=dropout_key
    )


@jax.custom_vjp
def add_shared(x: Array, shared: Array) -> Array:
    """`x` [..., H, Q, T] plus `shared` [H, Q, T].

    As `x + shared`, but the gradient's sum over the leading axes is a matrix product: as a
    reduction it takes XLA:CPU longer than the attention itself.
    """
    return x + shared


def _add_shared_forward(x: Array, shared: Array) -> tuple[Array, None]:
    return x + shared, None


def _add_shared_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    return gradient, sum_leading(gradient)


add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def sum_leading(x: Array) -> Array:
    """Sums [..., H, Q, T] over all but the last three axes, as a matrix product."""
    shape = x.shape[-3:]
    rows = x.reshape(-1, math.prod(shape))
    return (jnp.ones(rows.shape[:1], rows.dtype) @ rows).reshape(shape)
