"""The kernels of `pallas`: attention of one head over one set of keys at a time, all on chip.

A step of a kernel's grid has the queries, keys and values of one head and a few windows in fast
memory. It takes R queries at once, with all the keys they see: W + R of the 2W keys of a window and
the one before it, or all T keys where there is no window. A softmax over so few keys needs no
second pass, so that nothing is kept for the backward pass, which computes it again.

Letters: B lanes, K windows of a lane, Q queries and T keys of a window, H heads, D head size, and P
windows of a step. The windows of a lane stand in a row, `[B, K*T, H*D]`, which is how projections
come and go; where D is no multiple of 128, heads come first, `[B, H, K*T, D]`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from block_recurrent.model.attention.hashing import keep_factors
from block_recurrent.model.attention.pallas_launch import Operands, Sizes, make_sizes, run


def forward(operands: Operands, blocks: int, heads: int, rate: float, interpret: bool) -> Array:
    """Attention, of the shape of the queries and the dtype of the values.

    Args:
      operands: what is attended with.
      blocks: K.
      heads: H.
      rate: of dropout.
      interpret: whether to run the kernel as plain array operations.
    """
    sizes = make_sizes(operands, blocks, heads)
    out = jax.ShapeDtypeStruct(operands.queries.shape, operands.values[0].dtype)
    kernel = functools.partial(_forward_kernel, sizes, rate)
    return run(kernel, "attention_forward", sizes, operands, (), out, 2, interpret)


def backward(
    operands: Operands, gradient: Array, blocks: int, heads: int, rate: float, interpret: bool
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Gradients of queries, keys, values, each in its dtype, and of the bias, summed."""
    sizes = make_sizes(operands, blocks, heads)
    out = jax.tree.map(_like, tuple(operands)[:4])
    kernel = functools.partial(_backward_kernel, sizes, rate)
    return run(kernel, "attention_backward", sizes, operands, (gradient,), out, 5, interpret)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _forward_kernel(sizes: Sizes, rate: float, refs: Operands, out, *scratch) -> None:
    head, first_window = _place(sizes)

    def window(p: Array) -> None:
        keys, values = _in_a_row(refs, scratch, sizes, p)

        def some_rows(tile: "_Tile") -> None:
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, head, first_window + p, rate)
            weights = (weights * kept).astype(out.dtype)
            heads = _product(weights, values[tile.seen], 1, 0) / total
            out[tile.rows_of(p)] = heads.astype(out.dtype)

        _for_all_rows(sizes, some_rows)

    _for_each(sizes.windows, window)


def _backward_kernel(
    sizes: Sizes, rate: float, refs: Operands, gradient, of_queries, *others
) -> None:
    (of_keys, of_values, of_bias), sums, scratch = others[:3], others[3:5], others[5:]
    head, first_window = _place(sizes)
    for ref in of_bias:

        @pl.when(first_window == 0)
        def _(ref=ref) -> None:
            ref[...] = jnp.zeros_like(ref)

    def window(p: Array) -> None:
        keys, values = _in_a_row(refs, scratch, sizes, p)
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

        def some_rows(tile: "_Tile") -> None:
            rows = tile.rows_of(p)
            incoming, queries = gradient[rows], refs.queries[rows]
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, head, first_window + p, rate)
            probabilities = weights / total
            dropped = (probabilities * kept).astype(values.dtype)
            of_dropped = _product(incoming, values[tile.seen], 1, 1)
            of_logits = _through_softmax(probabilities, of_dropped * kept)
            low = of_logits.astype(values.dtype)
            sums[0][tile.seen] += _product(low, queries, 0, 0)
            sums[1][tile.seen] += _product(dropped, incoming, 0, 0)
            of_queries[rows] = _product(low, keys[tile.seen], 1, 0).astype(low.dtype)
            for ref in of_bias:
                ref[...] += of_logits

        _for_all_rows(sizes, some_rows)
        _put_back(sums[0], of_keys, sizes, p)
        _put_back(sums[1], of_values, sizes, p)

    _for_each(sizes.windows, window)


def _through_softmax(probabilities: Array, gradient: Array) -> Array:
    """The gradient of the logits."""
    mean = (probabilities * gradient).sum(axis=1, keepdims=True)
    return probabilities * (gradient - mean)


class _Tile(NamedTuple):
    """R queries, and the keys they see."""

    sizes: Sizes
    first_row: Array
    first_seen: Array | int

    def rows_of(self, p: Array) -> Any:
        """Where the queries are among those of all windows of a step."""
        return pl.ds(_at(p, self.sizes.queries) + self.first_row, self.sizes.rows)

    @property
    def seen(self) -> Any:
        """Where the keys are among those of their window."""
        return pl.ds(self.first_seen, self.sizes.seen)


def _for_all_rows(sizes: Sizes, some_rows: Callable[[_Tile], None]) -> None:
    """Takes R queries after the other; in a window, those further on see keys further on."""
    windowed = sizes.seen < sizes.keys

    def step(index: Array) -> None:
        first = _at(index, sizes.rows)
        some_rows(_Tile(sizes, first, first if windowed else 0))

    _for_each(sizes.queries // sizes.rows, step)


def _at(index: Array, length: int) -> Array:
    return pl.multiple_of(index * length, length)


def _for_each(count: int, step: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(0, count, lambda index, _: step(index), None)


def _in_a_row(refs: Operands, scratch: tuple[Any, ...], sizes: Sizes, p: Array) -> Any:
    """Keys and values of a window, [T, D] each, two sources one after the other."""
    length = sizes.keys // len(refs.keys)
    window = pl.ds(_at(p, length), length)
    if len(refs.keys) == 1:
        return refs.keys[0].at[window], refs.values[0].at[window]
    for whole, parts in zip(scratch, (refs.keys, refs.values), strict=True):
        for number, part in enumerate(parts):
            whole[pl.ds(number * length, length)] = part[window]
    return scratch


def _put_back(whole, parts: tuple[Any, ...], sizes: Sizes, p: Array) -> None:
    length = sizes.keys // len(parts)
    for number, part in enumerate(parts):
        ours = whole[pl.ds(number * length, length)]
        part[pl.ds(_at(p, length), length)] = ours.astype(part.dtype)


def _weights(tile: _Tile, refs: Operands, p: Array, keys) -> tuple[Array, Array]:
    """Probabilities before they are divided by their sums, float32, and the sums."""
    logits = _product(refs.queries[tile.rows_of(p)], keys[tile.seen], 1, 1)
    for ref in refs.bias:
        logits = logits + ref[...]
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, weights.sum(axis=1, keepdims=True)


def _place(sizes: Sizes) -> tuple[Array, Array]:
    """Numbers of the head and of the first window of a step."""
    lane, step = pl.program_id(1), pl.program_id(2)
    return pl.program_id(0), lane * sizes.blocks + step * sizes.windows


def _kept(tile: _Tile, refs: Operands, head: Array, window: Array, rate: float) -> Array | float:
    """What the probabilities of a tile are multiplied with."""
    if not refs.seeds:
        return 1.0
    sizes = tile.sizes
    row = head * sizes.queries + tile.first_row
    first = (row * sizes.keys + tile.first_seen).astype(jnp.uint32)
    seeds = refs.seeds[0][window], refs.seeds[1][window]
    return keep_factors(rate, seeds, first, (sizes.rows, sizes.seen), jnp.uint32(sizes.keys))


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """The product that sums over an axis of each, float32."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((left_axis,), (right_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
