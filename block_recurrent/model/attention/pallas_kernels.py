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

from block_recurrent.model.attention.pallas_launch import (
    Layout,
    Operands,
    Settings,
    Sizes,
    make_sizes,
    room_for_keys,
    run,
)
from block_recurrent.model.dropout import keep_factors
from block_recurrent.model.state import KeysValues


def forward(operands: Operands, settings: Settings) -> Array:
    """Attention, of the shape of the queries and the dtype of the values."""
    sizes = make_sizes(operands, settings)
    layout = Layout(sizes, backwards=False)
    out = jax.ShapeDtypeStruct(operands.queries.shape, operands.context.values.dtype)
    return run(
        functools.partial(_forward_kernel, sizes, settings.rate),
        "attention_forward",
        sizes,
        _arguments(layout, operands),
        (out, layout.own(out)),
        _room_in_a_row(sizes, operands),
        2,
        settings.interpret,
    )


def backward(
    operands: Operands, gradient: Array, settings: Settings
) -> tuple[Array, KeysValues, KeysValues | None, Array | None]:
    """Gradients of all operands, each in its dtype, that of the bias summed over windows.

    Windows are taken from the last to the first, so that what a window gives to the keys and values
    before it is at hand when those have their turn.
    """
    sizes = make_sizes(operands, settings)
    layout = Layout(sizes, backwards=True)
    out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(operands)[:4])
    arrays, specs = _arguments(layout, operands)
    return run(
        functools.partial(_backward_kernel, sizes, settings.detached, settings.rate),
        "attention_backward",
        sizes,
        ((*arrays, gradient), (*specs, layout.own(gradient))),
        (out, tuple(layout.operands(operands))[:4]),
        room_for_keys(sizes, jnp.float32) + _room_in_a_row(sizes, operands),
        5,
        settings.interpret,
    )


def _arguments(layout: Layout, operands: Operands) -> tuple[Any, Any]:
    """Operands, and the context once more for the window before those of a step, if any is."""
    needed = operands.previous is not None and layout.sizes.steps > 1
    before = operands.context if needed else None
    specs = layout.operands(operands), jax.tree.map(layout.before, before)
    return (operands, before), specs


def _room_in_a_row(sizes: Sizes, operands: Operands) -> list[Any]:
    return room_for_keys(sizes, operands.context.keys.dtype) if sizes.windowed else []


def _forward_kernel(sizes: Sizes, rate: float, refs: Operands, before, out, *scratch) -> None:
    step = _Step(pl.program_id(0), pl.program_id(1), pl.program_id(2))

    def window(p: Array) -> None:
        keys, values = _in_a_row(refs, before, scratch, sizes, step.number, p)

        def some_rows(tile: "_Tile") -> None:
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, step, p, rate)
            weights = (weights * kept).astype(out.dtype)
            heads = _product(weights, values[tile.seen], 1, 0) / total
            out[tile.rows_of(p)] = heads.astype(out.dtype)

        _for_all_rows(sizes, some_rows)

    _for_each(sizes.windows, window)


def _backward_kernel(
    sizes: Sizes, detached: bool, rate: float, refs: Operands, before, gradient, *others
) -> None:
    (of_queries, of_context, of_previous, of_bias), scratch = others[:4], others[4:]
    sums, room = scratch[:2], scratch[2:]
    number = sizes.steps - 1 - pl.program_id(2)
    step = _Step(pl.program_id(0), pl.program_id(1), number)
    end = number == sizes.steps - 1
    if of_bias is not None:

        @pl.when((step.lane == 0) & end)
        def _() -> None:
            of_bias[...] = jnp.zeros_like(of_bias)

    def window(index: Array) -> None:
        p = sizes.windows - 1 - index
        keys, values = _in_a_row(refs, before, room, sizes, step.number, p)
        for ref in sums:
            _begin_sums(ref, sizes, end & (index == 0), detached)

        def some_rows(tile: "_Tile") -> None:
            rows = tile.rows_of(p)
            incoming, queries = gradient[rows], refs.queries[rows]
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, step, p, rate)
            probabilities = weights / total
            dropped = (probabilities * kept).astype(values.dtype)
            of_dropped = _product(incoming, values[tile.seen], 1, 1)
            of_logits = _through_softmax(probabilities, of_dropped * kept)
            low = of_logits.astype(values.dtype)
            sums[0][tile.seen] += _product(low, queries, 0, 0)
            sums[1][tile.seen] += _product(dropped, incoming, 0, 0)
            of_queries[rows] = _product(low, keys[tile.seen], 1, 0).astype(low.dtype)
            if of_bias is not None:
                of_bias[...] += of_logits

        _for_all_rows(sizes, some_rows)
        length = sizes.own_keys
        for ref, out in zip(sums, of_context, strict=True):
            ours = ref[pl.ds(sizes.keys - length, length)]
            out[pl.ds(_at(p, length), length)] = ours.astype(out.dtype)

    _for_each(sizes.windows, window)
    if of_previous is not None:

        @pl.when(number == 0)
        def _() -> None:
            for ref, out in zip(sums, of_previous, strict=True):
                ours = ref[pl.ds(0, sizes.own_keys)]
                out[...] = (jnp.zeros_like(ours) if detached else ours).astype(out.dtype)


def _begin_sums(ref, sizes: Sizes, last: Array, detached: bool) -> None:
    """Where the gradients of a window's keys, or values, and of those before it are summed.

    Begins with what the window after it gave to it; the `last` of a lane has none.
    """
    length = sizes.own_keys
    if sizes.windowed:
        given = jnp.zeros((length, sizes.size), ref.dtype)
        if not detached:
            given = jnp.where(last, given, ref[pl.ds(0, length)])
        ref[pl.ds(length, length)] = given
    ref[pl.ds(0, length)] = jnp.zeros((length, sizes.size), ref.dtype)


def _through_softmax(probabilities: Array, gradient: Array) -> Array:
    """The gradient of the logits."""
    mean = (probabilities * gradient).sum(axis=1, keepdims=True)
    return probabilities * (gradient - mean)


class _Step(NamedTuple):
    """A step of the grid: its head, its lane, and its number among those of the lane's windows."""

    head: Array
    lane: Array
    number: Array


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

    def step(index: Array) -> None:
        first = _at(index, sizes.rows)
        some_rows(_Tile(sizes, first, first if sizes.windowed else 0))

    _for_each(sizes.queries // sizes.rows, step)


def _at(index: Array, length: int) -> Array:
    return pl.multiple_of(index * length, length)


def _for_each(count: int, step: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(0, count, lambda index, _: step(index), None)


def _in_a_row(
    refs: Operands, before, room: tuple[Any, ...], sizes: Sizes, number: Array, p: Array
) -> Any:
    """Keys and values of a window, [T, D] each, after those of the window before it."""
    length = sizes.own_keys
    window = pl.ds(_at(p, length), length)
    if refs.previous is None:
        return tuple(x.at[window] for x in refs.context)
    neighbors = (None, None) if before is None else before
    sources = zip(room, refs.context, refs.previous, neighbors, strict=True)
    for whole, current, previous, neighbor in sources:
        whole[pl.ds(length, length)] = current[window]

        @pl.when(p > 0)
        def _(whole=whole, current=current) -> None:
            whole[pl.ds(0, length)] = current[pl.ds(_at(p - 1, length), length)]

        @pl.when((p == 0) & (number == 0))
        def _(whole=whole, previous=previous) -> None:
            whole[pl.ds(0, length)] = previous[...]

        if neighbor is not None:

            @pl.when((p == 0) & (number > 0))
            def _(whole=whole, neighbor=neighbor) -> None:
                whole[pl.ds(0, length)] = neighbor[...]

    return room


def _weights(tile: _Tile, refs: Operands, p: Array, keys) -> tuple[Array, Array]:
    """Probabilities before they are divided by their sums, float32, and the sums."""
    logits = _product(refs.queries[tile.rows_of(p)], keys[tile.seen], 1, 1)
    if refs.bias is not None:
        logits = logits + refs.bias[...]
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, weights.sum(axis=1, keepdims=True)


def _kept(tile: _Tile, refs: Operands, step: _Step, p: Array, rate: float) -> Array | float:
    """What the probabilities of a tile are multiplied with."""
    if refs.seeds is None:
        return 1.0
    sizes = tile.sizes
    window = step.lane * sizes.blocks + step.number * sizes.windows + p
    row = step.head * sizes.queries + tile.first_row
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
