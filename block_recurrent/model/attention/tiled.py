"""Attention for CPUs and GPUs: rows of sub-blocks, and a gradient by hand.

A token sees half of the window's tile [W, 2W]. The tile is cut into rows of sub-blocks, each of
which holds R tokens and the W + R keys that they see together. The forward pass keeps queries, keys
and values only, and the backward pass computes the probabilities again.

On a GPU a loop goes over the rows, so that the whole tile is never in memory. On a CPU the rows are
unrolled: there XLA fuses two products and the softmax between them into one pass whose
intermediates stay in the cache, as long as nothing else uses them. Each product of the gradient is
written in the order for which XLA:CPU has a fast path.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from block_recurrent.config import LayerConfig
from block_recurrent.model import layers
from block_recurrent.model.array_types import Blocks, DistanceBias, Key, Seeds, TileBias
from block_recurrent.model.attention.choice import Attention
from block_recurrent.model.attention.reference import sum_leading
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues, with_preceding

SMALLEST_ROWS = 64
# A loop over more parts needs less memory. Unrolled, few parts are faster on a CPU.
MOST_PARTS, MOST_PARTS_IN_TURN = 8, 16


def attend(queries: Float[Array, "... Q H D"], context: KeysValues) -> Float[Array, "... Q H D"]:
    """As `reference.attend` without bias and dropout."""
    queries, keys, values = map(_swap_heads, (queries, *context))
    return _swap_heads(_attend(queries, keys, values, None, None))


def attend_window(
    queries: Blocks,
    current: KeysValues,
    previous: KeysValues,
    bias: DistanceBias,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    in_turn: bool = False,
) -> Blocks:
    """As `reference.attend_window`; with `in_turn` a loop goes over the rows of sub-blocks."""
    window = queries.shape[-3]
    rows = rows_at_once(window, MOST_PARTS_IN_TURN if in_turn else MOST_PARTS)
    queries = _swap_heads(queries)
    keys, values = map(_swap_heads, with_preceding(current, previous, detached=detached))
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
        # All rows have the same tile, but on a CPU slices of the whole one are faster.
        tile = window_bias(bias)
        parts = [attend_rows(i, tile[:, i : i + rows, i : i + window + rows]) for i in starts]
    return _swap_heads(jnp.concatenate(parts, axis=-2))


def rows_at_once(window: int, most_parts: int) -> int:
    """R, how many tokens a row of sub-blocks holds: an equal part of the window, not too few."""
    rows = max(window // most_parts, SMALLEST_ROWS)
    return rows if window % rows == 0 else window


def _tokens(x: Float[Array, "... T D"], first: Array | int, count: int) -> Float[Array, "... R D"]:
    """`count` tokens from `first` on; a static slice, which is cheaper, where `first` is known."""
    if isinstance(first, int):
        return x[..., first : first + count, :]
    return jax.lax.dynamic_slice_in_dim(x, first, count, axis=-2)


def _swap_heads(x: Float[Array, "... T H D"]) -> Float[Array, "... H T D"]:
    """To heads first, or back again."""
    return jnp.swapaxes(x, -3, -2)


def _make_seeds(rate: float, key: Key | None) -> Seeds | None:
    return None if key is None or rate == 0.0 else layers.make_seeds(key)


def _kept(
    shape: tuple[int, ...],
    rate: float,
    seeds: Seeds | None,
    whole: tuple[int, ...],
    number: Array | int,
) -> Float32[Array, "... H Q T"] | None:
    """Factors of the probabilities, 0 or 1 / (1 - rate); None for no dropout."""
    if seeds is None:
        return None
    return layers.drop_part(jnp.ones(shape, jnp.float32), rate, seeds, whole, number)


@jax.custom_vjp
def _attend(
    queries: Float[Array, "... H Q D"],
    keys: Float[Array, "... H T D"],
    values: Float[Array, "... H T D"],
    bias: TileBias | None,
    kept: Float32[Array, "... H Q T"] | None,
) -> Float[Array, "... H Q D"]:
    """Attention with heads first; `kept` multiplies the probabilities."""
    weights, total = _weights(queries, keys, bias)
    weights = _dropped(weights, kept).astype(values.dtype)
    heads = jnp.einsum("...qt,...td->...qd", weights, values, preferred_element_type=jnp.float32)
    return (heads / total).astype(values.dtype)


def _weights(
    queries: Array, keys: Array, bias: TileBias | None
) -> tuple[Float32[Array, "... H Q T"], Float32[Array, "... H Q 1"]]:
    """Probabilities before they are divided by their sums, and the sums."""
    logits = jnp.einsum("...qd,...td->...qt", queries, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jax.lax.broadcast_to_rank(bias, logits.ndim)
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
    # The first barrier keeps XLA from merging this computation of the weights with the forward one,
    # which would then have to be kept. The others keep a value that is used more than once apart
    # from its uses.
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


def _transposed_product(
    x: Float[Array, "... Q T"], y: Float[Array, "... Q D"]
) -> Float[Array, "... T D"]:
    """`xᵀ y`, in the order that is faster on a CPU."""
    summed = jnp.einsum("...qd,...qt->...dt", y, x)
    return jnp.swapaxes(jax.lax.optimization_barrier(summed), -1, -2)


_attend.defvjp(_attend_forward, _attend_backward)


# Built once, because models compare equal only if they hold the same functions.
UNROLLED = Attention(attend, attend_window)
IN_TURN = Attention(attend, functools.partial(attend_window, in_turn=True))


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation for a platform; it suits every layer."""
    del config
    return UNROLLED if platform == "cpu" else IN_TURN
