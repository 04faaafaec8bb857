"""Attention kernels for TPUs: one head over one set of keys at a time, all on chip.

A step of a kernel's grid has the queries, keys and values of one head and a few windows in fast
memory. It takes R queries at once, with all the keys they see: W + R of the 2W keys of a window and
the one before it, or all T keys where there is no window. A softmax over so few keys needs no
second pass. Nothing is kept for the backward pass, which computes the softmax again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Float

from block_recurrent.model.array_types import Blocks, DistanceBias, Key
from block_recurrent.model.attention import reference
from block_recurrent.model.attention.tpu.plan import (
    LANES,
    ROWS,
    WHOLE,
    Operands,
    Plan,
    Settings,
    make_plan,
)
from block_recurrent.model.layers import is_kept, make_seeds
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues
from block_recurrent.parallel.axes import on_every_device

UNROLLED = 4  # steps of R queries that the compiler may interleave


def attend(
    queries: Float[Array, "... Q H D"],
    context: KeysValues,
    *,
    interpret: bool = False,
) -> Float[Array, "... Q H D"]:
    """As `reference.attend` without bias and dropout, which it calls for sizes without a kernel.

    The kernels are for numbers of queries and keys that are multiples of 128.
    """
    if queries.shape[-3] % LANES or context.keys.shape[-3] % LANES:
        return reference.attend(queries, context)
    return attend_window(queries, context, None, None, interpret=interpret)


def attend_window(
    queries: Blocks,
    current: KeysValues,
    previous: KeysValues | None,
    bias: DistanceBias | None,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    interpret: bool = False,
) -> Blocks:
    """As `reference.attend_window`, of windows that are multiples of 128.

    Without a window before the first, and without a bias, queries attend to all keys of their own.
    """
    lanes, *blocks, _, heads, size = queries.shape
    windows = math.prod(blocks)
    settings = Settings(windows, heads, size, detached, dropout_rate, interpret)
    seeds = None
    if dropout_key is not None and dropout_rate > 0:
        seeds = jax.tree.map(jnp.ravel, make_seeds(dropout_key, (lanes, *blocks)))

    def fold(x: Array) -> Array:
        if settings.heads_first:
            return jnp.swapaxes(x.reshape(lanes, -1, heads, size), 1, 2)
        return x.reshape(lanes, -1, heads * size)

    arrays: tuple[Any, Any, Any] = jax.tree.map(fold, (queries, current, previous))
    folded = Operands(*arrays, bias, seeds)
    attended: Any = _fused(settings, folded)
    if settings.heads_first:
        attended = jnp.swapaxes(attended, 1, 2)
    return attended.reshape(queries.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: Settings, operands: Operands) -> Array:
    """Attention, of the shape of the queries and the dtype of the values."""

    def forward(*arrays: Any) -> Array:
        operands = Operands(*arrays)
        plan = make_plan(operands, settings)
        out = jax.ShapeDtypeStruct(operands.queries.shape, operands.context.values.dtype)
        tiled = operands._replace(bias=_tile(operands.bias))
        results = (out, plan.own(out))
        return plan.run(_forward_kernel, "attention_forward", tiled, (), results, [], 2)

    return on_every_device(forward, tuple(operands), tuple(WHOLE), False)


def _tile(bias: DistanceBias | None) -> Array | None:
    """Lays a bias out for the kernels, [H, W] -> [H*R, W + R]."""
    if bias is None:
        return None
    tile = window_bias(bias, ROWS)
    return tile.reshape(-1, tile.shape[2])


def _fused_forward(settings: Settings, operands: Operands) -> tuple[Array, Operands]:
    return _fused(settings, operands), operands


def _fused_backward(settings: Settings, operands: Operands, gradient: Array) -> tuple[Operands]:
    """Gradients of all operands, each in its dtype, that of the bias summed over windows.

    Windows are taken from the last to the first, so that what a window gives to the keys and values
    before it is at hand when those have their turn.
    """

    def backward(gradient: Array, *arrays: Any) -> tuple[Any, ...]:
        operands = Operands(*arrays)
        plan = make_plan(operands, settings, backwards=True)
        tile, pull = jax.vjp(_tile, operands.bias)
        tiled = operands._replace(bias=tile)
        out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(tiled)[:4])
        results = (out, tuple(plan.specs(tiled))[:4])
        room = plan.room_for_keys(jnp.float32)
        *gradients, of_tile = plan.run(
            _backward_kernel, "attention_backward", tiled, (gradient,), results, room, 5
        )
        return *gradients, *pull(of_tile)

    arguments, whole = (gradient, *operands), (False, *WHOLE)
    gradients = on_every_device(backward, arguments, whole, tuple(WHOLE)[:4])
    return (Operands(*gradients, seeds=jax.tree.map(lambda x: None, operands.seeds)),)


_fused.defvjp(_fused_forward, _fused_backward)


def _forward_kernel(plan: Plan, refs: Operands, before, out, *scratch) -> None:
    step = _Step(pl.program_id(0), pl.program_id(1), pl.program_id(2))

    def window(p: Array) -> None:
        keys, values = _in_a_row(refs, before, scratch, plan, step.number, p)

        def some_rows(tile: "_Tile") -> None:
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, step, p)
            weights = (weights * kept).astype(out.dtype)
            heads = _product(weights, values[tile.seen], 1, 0) / total
            out[tile.rows_of(p)] = heads.astype(out.dtype)

        _for_all_rows(plan, some_rows)

    _for_each(plan.windows, window)


def _backward_kernel(plan: Plan, refs: Operands, before, gradient, *others) -> None:
    (of_queries, of_context, of_previous, of_bias), scratch = others[:4], others[4:]
    sums, room = scratch[:2], scratch[2:]
    number = plan.steps - 1 - pl.program_id(2)
    step = _Step(pl.program_id(0), pl.program_id(1), number)
    end = number == plan.steps - 1
    if of_bias is not None:

        @pl.when((step.lane == 0) & end)
        def _() -> None:
            of_bias[...] = jnp.zeros_like(of_bias)

    def window(index: Array) -> None:
        p = plan.windows - 1 - index
        keys, values = _in_a_row(refs, before, room, plan, step.number, p)
        for ref in sums:
            _begin_sums(ref, plan, end & (index == 0))

        def some_rows(tile: "_Tile") -> None:
            rows = tile.rows_of(p)
            incoming, queries = gradient[rows], refs.queries[rows]
            weights, total = _weights(tile, refs, p, keys)
            kept = _kept(tile, refs, step, p)
            probabilities = weights / total
            dropped = (probabilities * kept).astype(values.dtype)
            of_dropped = _product(incoming, values[tile.seen], 1, 1)
            of_logits = _softmax_gradient(probabilities, of_dropped * kept)
            low = of_logits.astype(values.dtype)
            sums[0][tile.seen] += _product(low, queries, 0, 0)
            sums[1][tile.seen] += _product(dropped, incoming, 0, 0)
            of_queries[rows] = _product(low, keys[tile.seen], 1, 0).astype(low.dtype)
            if of_bias is not None:
                of_bias[...] += of_logits

        _for_all_rows(plan, some_rows)
        length = plan.own_keys
        for ref, out in zip(sums, of_context, strict=True):
            ours = ref[pl.ds(plan.keys - length, length)]
            out[pl.ds(_at(p, length), length)] = ours.astype(out.dtype)

    _for_each(plan.windows, window)
    if of_previous is not None:

        @pl.when(number == 0)
        def _() -> None:
            for ref, out in zip(sums, of_previous, strict=True):
                ours = ref[pl.ds(0, plan.own_keys)]
                ours = jnp.zeros_like(ours) if plan.settings.detached else ours
                out[...] = ours.astype(out.dtype)


def _softmax_gradient(probabilities: Array, gradient: Array) -> Array:
    mean = (probabilities * gradient).sum(axis=1, keepdims=True)
    return probabilities * (gradient - mean)


def _begin_sums(ref, plan: Plan, last: Array) -> None:
    """Begins the sums over a window's queries of the gradients of keys, or of values.

    The second half is the window's own. It begins with the gradient from the window after it, which
    the `last` window of a lane does not have. The first half is the window before.
    """
    length = plan.own_keys
    if plan.windowed:
        given = jnp.zeros((length, plan.settings.size), ref.dtype)
        if not plan.settings.detached:
            given = jnp.where(last, given, ref[pl.ds(0, length)])
        ref[pl.ds(length, length)] = given
    ref[pl.ds(0, length)] = jnp.zeros((length, plan.settings.size), ref.dtype)


class _Step(NamedTuple):
    """A step of the grid: its head, its lane, and its number among those of the lane's windows."""

    head: Array
    lane: Array
    number: Array


class _Tile(NamedTuple):
    """R queries, and the keys they see."""

    plan: Plan
    first_row: Array
    first_seen: Array | int

    def rows_of(self, p: Array) -> Any:
        """Where the queries are among those of all windows of a step."""
        return pl.ds(_at(p, self.plan.queries) + self.first_row, ROWS)

    @property
    def seen(self) -> Any:
        """Where the keys are among those of their window."""
        return pl.ds(self.first_seen, self.plan.seen)


def _for_all_rows(plan: Plan, some_rows: Callable[[_Tile], None]) -> None:
    """Takes R queries at a time; in a window, later queries see later keys."""

    def step(index: Array) -> None:
        first = _at(index, ROWS)
        some_rows(_Tile(plan, first, first if plan.windowed else 0))

    count = plan.queries // ROWS
    _for_each(count, step, math.gcd(count, UNROLLED))


def _at(index: Array, length: int) -> Array:
    return pl.multiple_of(index * length, length)


def _for_each(count: int, step: Callable[[Array], None], at_once: int = 1) -> None:
    """A loop of `count` steps; the compiler sees `at_once` of them side by side."""

    def several(index: Array, _: None) -> None:
        for i in range(at_once):
            step(index * at_once + i)

    jax.lax.fori_loop(0, count // at_once, several, None)


def _in_a_row(
    refs: Operands, before, room: tuple[Any, ...], plan: Plan, number: Array, p: Array
) -> Any:
    """Keys and values of a window, [T, D] each, after those of the window before it."""
    length = plan.own_keys
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


def _kept(tile: _Tile, refs: Operands, step: _Step, p: Array) -> Array | float:
    if refs.seeds is None:
        return 1.0
    plan, settings = tile.plan, tile.plan.settings
    window = step.lane * settings.blocks + step.number * plan.windows + p
    row = step.head * plan.queries + tile.first_row
    first = (row * plan.keys + tile.first_seen).astype(jnp.uint32) + refs.seeds[0][window]
    rows, keys = (jax.lax.broadcasted_iota(jnp.uint32, (ROWS, plan.seen), i) for i in (0, 1))
    counter = first + rows * jnp.uint32(plan.keys) + keys
    kept = is_kept(settings.rate, counter, refs.seeds[1][window])
    return jnp.where(kept, jnp.float32(1 / (1 - settings.rate)), jnp.float32(0))


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
