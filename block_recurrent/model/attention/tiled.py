"""Attention for CPUs: a softmax that XLA computes in one pass, and a gradient by hand.

Three things make it fast where the reference is not. XLA:CPU fuses two products and the softmax
between them into one pass whose intermediates stay in the cache, as long as nothing else asks for
them; so the forward pass keeps queries, keys and values only, and the backward pass computes the
probabilities again. The window's tile [W, 2W], of which a token sees half, is cut into rows of
sub-blocks, each with the W + R keys that R tokens see together. And each product of the gradient is
written in the order that takes a fast path.
"""

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.attention.reference import sum_leading
from block_recurrent.model.blocks import concatenate_windows, preceding_blocks
from block_recurrent.model.dropout import dropout
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues

SMALLEST_ROWS = 64
MOST_PARTS = 8


def attend(
    queries: Array,
    context: KeysValues,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """As `reference.attend` without a bias."""
    queries, keys, values = map(_heads_first, (queries, *context))
    shape = (*queries.shape[:-1], keys.shape[-2])
    kept = _kept(shape, dropout_rate, dropout_key)
    return _heads_second(_attend(queries, keys, values, None, kept))


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
    """As `reference.attend_window`."""
    window = queries.shape[-3]
    rows = rows_at_once(window)
    tile = window_bias(bias)
    queries = _heads_first(queries)
    preceding = preceding_blocks(current, previous, detached=detached)
    keys, values = map(_heads_first, concatenate_windows(preceding, current))
    kept = _kept((*queries.shape[:-1], 2 * window), dropout_rate, dropout_key)
    heads = []
    for first in range(0, window, rows):
        ours, seen = slice(first, first + rows), slice(first, first + window + rows)
        part = (queries[..., ours, :], keys[..., seen, :], values[..., seen, :])
        part_kept = None if kept is None else kept[..., ours, seen]
        heads.append(_attend(*part, tile[:, ours, seen], part_kept))
    return _heads_second(jnp.concatenate(heads, axis=-2))


def rows_at_once(window: int) -> int:
    """How many tokens of a window share a sub-block: an eighth of it, but not too few."""
    rows = max(window // MOST_PARTS, SMALLEST_ROWS)
    return rows if window % rows == 0 else window


def _heads_first(x: Array) -> Array:
    """[..., T, H, D] -> [..., H, T, D]."""
    return jnp.swapaxes(x, -3, -2)


_heads_second = _heads_first  # its own inverse


def _kept(shape: tuple[int, ...], rate: float, key: Array | None) -> Array | None:
    """What probabilities are multiplied with: 0 or 1 / (1 - rate), float32; None for nothing."""
    if key is None or rate == 0.0:
        return None
    return dropout(jnp.ones(shape, jnp.float32), rate, key)


@jax.custom_vjp
def _attend(
    queries: Array, keys: Array, values: Array, bias: Array | None, kept: Array | None
) -> Array:
    """Queries [..., H, Q, D], keys and values [..., H, T, D] -> [..., H, Q, D].

    `bias` is [H, Q, T] and added to the logits, `kept` [..., H, Q, T] multiplies probabilities.
    """
    weights, total = _weights(queries, keys, bias)
    weights = _dropped(weights, kept).astype(values.dtype)
    heads = jnp.einsum("...qt,...td->...qd", weights, values, preferred_element_type=jnp.float32)
    return (heads / total).astype(values.dtype)


def _weights(queries: Array, keys: Array, bias: Array | None) -> tuple[Array, Array]:
    """Probabilities [..., H, Q, T] before they are divided by their sums [..., H, Q, 1]."""
    logits = jnp.einsum("...qd,...td->...qt", queries, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _dropped(probabilities: Array, kept: Array | None) -> Array:
    return probabilities if kept is None else probabilities * kept


def _attend_forward(
    queries: Array, keys: Array, values: Array, bias: Array | None, kept: Array | None
) -> tuple[Array, tuple]:
    saved = (queries, keys, values, bias, kept)
    return _attend(*saved), saved


def _attend_backward(saved: tuple, gradient: Array) -> tuple:
    # Barriers say what XLA must not merge: here, this computation of the weights and the forward
    # one, which would then have to be kept; below, what is used more than once and what uses it.
    queries, keys, values, bias, kept = jax.lax.optimization_barrier(saved)
    dtype = values.dtype
    weights, total = _weights(queries, keys, bias)
    probabilities = jax.lax.optimization_barrier(weights / total)
    of_probabilities = _dropped(
        jnp.einsum("...qd,...td->...qt", gradient, values, preferred_element_type=jnp.float32), kept
    )
    mean = (probabilities * of_probabilities).sum(axis=-1, keepdims=True)
    of_logits = jax.lax.optimization_barrier(probabilities * (of_probabilities - mean))
    of_bias = None if bias is None else sum_leading(of_logits)
    low, dropped = of_logits.astype(dtype), _dropped(probabilities, kept).astype(dtype)
    return (
        jnp.einsum("...qt,...td->...qd", low, keys),
        _transposed_product(low, queries),
        _transposed_product(dropped, gradient),
        of_bias,
        None,
    )


def _transposed_product(x: Array, y: Array) -> Array:
    """Sums products of [..., Q, T] and [..., Q, D] over Q, [..., T, D], in the faster order."""
    summed = jnp.einsum("...qd,...qt->...dt", y, x)
    return jnp.swapaxes(jax.lax.optimization_barrier(summed), -1, -2)


_attend.defvjp(_attend_forward, _attend_backward)
