"""Attention for CPUs and GPUs: rows of sub-blocks, and a gradient by hand.

The window's tile [W, 2W], of which a token sees half, is cut into rows of sub-blocks, each with the
W + R keys that R tokens see together. The forward pass keeps queries, keys and values only, and the
backward pass computes the probabilities again. On a GPU the rows are taken in turn, so that the
tile never exists. On a CPU, where XLA fuses two products and the softmax between them into one pass
whose intermediates stay in the cache as long as nothing else asks for them, they are laid out one
by one, and each product of the gradient is written in the order that takes a fast path.
"""

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model import layers
from block_recurrent.model.attention.reference import sum_leading
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, concatenate_windows, preceding_blocks

SMALLEST_ROWS = 64
# In turn more parts are worth their loop: they need less memory. Fused, a CPU prefers few.
MOST_PARTS, MOST_PARTS_IN_TURN = 8, 16


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
    kept = _kept(shape, dropout_rate, _make_seeds(dropout_rate, dropout_key), shape, 0)
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
    in_turn: bool = False,
) -> Array:
    """As `reference.attend_window`; with `in_turn` a loop goes over the rows of sub-blocks."""
    window = queries.shape[-3]
    rows = rows_at_once(window, MOST_PARTS_IN_TURN if in_turn else MOST_PARTS)
    queries = _heads_first(queries)
    preceding = preceding_blocks(current, previous, detached=detached)
    keys, values = map(_heads_first, concatenate_windows(preceding, current))
    shape = (*queries.shape[:-1], 2 * window)
    seeds = _make_seeds(dropout_rate, dropout_key)

    def attend_rows(first: Array | int, tile: Array) -> Array:
        ours = _tokens(queries, first, rows)
        seen = [_tokens(x, first, window + rows) for x in (keys, values)]
        part = (*shape[:-2], rows, window + rows)
        kept = _kept(part, dropout_rate, seeds, shape, first * (2 * window + 1))
        return _attend(ours, *seen, tile, kept)

    starts = range(0, window, rows)
    if in_turn and rows < window:
        tile = window_bias(bias, rows)
        attend_part = jax.checkpoint(lambda first: attend_rows(first, tile))
        parts = [*jax.lax.map(attend_part, jnp.array(starts))]
    else:
        # All rows have the same tile; on a CPU parts of the whole one are faster than that.
        tile = window_bias(bias)
        parts = [attend_rows(i, tile[:, i : i + rows, i : i + window + rows]) for i in starts]
    return _heads_second(jnp.concatenate(parts, axis=-2))


def rows_at_once(window: int, most_parts: int) -> int:
    """How many tokens of a window share a sub-block: an equal part of it, but not too few."""
    rows = max(window // most_parts, SMALLEST_ROWS)
    return rows if window % rows == 0 else window


def _tokens(x: Array, first: Array | int, count: int) -> Array:
    """Some of [..., T, D]; where they are known while a program is traced, at less cost."""
    if isinstance(first, int):
        return x[..., first : first + count, :]
    return jax.lax.dynamic_slice_in_dim(x, first, count, axis=-2)


def _heads_first(x: Array) -> Array:
    """[..., T, H, D] -> [..., H, T, D]."""
    return jnp.swapaxes(x, -3, -2)


_heads_second = _heads_first  # its own inverse


def _make_seeds(rate: float, key: Array | None) -> tuple[Array, Array] | None:
    """Of a mask for all probabilities; None for no dropout."""
    return None if key is None or rate == 0.0 else layers.make_seeds(key)


def _kept(
    shape: tuple[int, ...],
    rate: float,
    seeds: tuple[Array, Array] | None,
    whole: tuple[int, ...],
    number: Array | int,
) -> Array | None:
    """What probabilities are multiplied with: 0 or 1 / (1 - rate), float32; None for nothing."""
    if seeds is None:
        return None
    return layers.drop_part(jnp.ones(shape, jnp.float32), rate, seeds, whole, number)


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
