"""Attention kernels for TPUs: one head over one set of keys at a time, all on chip.

A step of a kernel's grid has the queries, keys and values of one head and a few windows in fast
memory. It takes R queries at once, with all the keys they see: W + R of the 2W keys of a window and
the one before it, or all T keys where there is no window. A softmax over so few keys needs no
second pass.

Logits have a row for each key and a column for each query. So what belongs to a query is one row,
sums over keys are sums of rows, and the gradients of keys and values are products of matrices as
they lie.
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
    Operands,
    Plan,
    Settings,
    make_plan,
)
from block_recurrent.model.layers import is_kept, make_seeds, seeds_of_parts
from block_recurrent.model.positions import window_bias
from block_recurrent.model.rematerialization import keep
from block_recurrent.model.state import KeysValues
from block_recurrent.parallel.axes import on_every_device, tensor_shards

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
    lanes, *blocks, length, heads, size = queries.shape
    windows = math.prod(blocks)
    settings = Settings(windows, heads, size, detached, dropout_rate, interpret)
    seeds = None
    if dropout_key is not None and dropout_rate > 0:
        keys = current.keys.shape[-3] * (1 if previous is None else 2)
        seeds = make_seeds(dropout_key, (lanes, windows))
        shards = tensor_shards(queries, heads)
        seeds = seeds_of_parts(seeds, shards, heads // shards * length * keys)

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
    return _fused_forward(settings, operands)[0]


def _fused_forward(settings: Settings, operands: Operands) -> tuple[Array, tuple[Any, ...]]:
    """Attention, and what its gradient needs; `Plan.log_sums` are of the softmax of each query."""

    def forward(*arrays: Any) -> Any:
        operands = Operands(*arrays)
        plan = make_plan(operands, settings)
        out = jax.ShapeDtypeStruct(operands.queries.shape, operands.context.values.dtype)
        laid_out = _lay_out(operands, _tile(operands.bias))
        results = ((out, plan.log_sums), (plan.own(out), plan.own_log_sums))
        return plan.run(_forward_kernel, "attention_forward", laid_out, (), results, [], 2)

    axes, result_axes = tuple(settings.axes), (settings.array_axes, "BH")
    results = on_every_device(forward, tuple(operands), axes, result_axes, settings.heads)
    attended, log_sums = keep(tuple(results))
    return attended, (operands, attended, log_sums)


def _tile(bias: DistanceBias | None) -> Array | None:
    """Lays a bias out for the kernels, [H, W] -> [H*(W + R), R]."""
    if bias is None:
        return None
    return jnp.swapaxes(window_bias(bias, ROWS), 1, 2).reshape(-1, ROWS)


def _lay_out(operands: Operands, tile: Array | None) -> Operands:
    """The operands of a device for its kernels, with what `_tile` makes of the bias."""
    return operands._replace(bias=tile, seeds=jax.tree.map(jnp.ravel, operands.seeds))


def _fused_backward(settings: Settings, saved: tuple, gradient: Array) -> tuple[Operands]:
    """Gradients of all operands, each in its dtype, that of the bias summed over windows.

    Windows are taken from the last to the first, so that what a window gives to the keys and values
    before it is at hand when those have their turn.
    """
    operands, *known = saved

    def backward(gradient: Array, attended: Array, log_sums: Array, *arrays: Any) -> Any:
        operands = Operands(*arrays)
        plan = make_plan(operands, settings, backwards=True)
        tile, pull = jax.vjp(_tile, operands.bias)
        laid_out = _lay_out(operands, tile)
        out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(laid_out)[:4])
        results = (out, tuple(plan.specs(laid_out))[:4])
        room = plan.room(plan.keys, jnp.float32)
        others = (gradient, plan.own(gradient)), (attended, plan.own(attended))
        others += ((log_sums, plan.own_log_sums),)
        *gradients, of_tile = plan.run(
            _backward_kernel, "attention_backward", laid_out, others, results, room, 5
        )
        return *gradients, *pull(of_tile)

    arguments = (gradient, *known, *operands)
    axes = (settings.array_axes, settings.array_axes, "BH", *settings.axes)
    result_axes = tuple(settings.axes)[:4]
    gradients = on_every_device(backward, arguments, axes, result_axes, settings.heads)
    return (Operands(*gradients, seeds=jax.tree.map(lambda x: None, operands.seeds)),)


_fused.defvjp(_fused_forward, _fused_backward)


def _forward_kernel(plan: Plan, refs: Operands, before, out, log_sums, *scratch) -> None:
    step = _Step(pl.program_id(0), pl.program_id(1), pl.program_id(2))
    whole = _in_a_row(refs, before, scratch, plan, step.number)

    def window(p: Array) -> None:
        keys, values = _seen_by(whole, plan, p)

        def compare(tile: _Tile) -> Array:
            return _logits(tile, refs, p, keys)

        def normalize(tile: _Tile, logits: Array) -> Array:
            largest = _over_keys(jnp.max, logits)
            weights = jnp.exp(logits - largest)
            total = _over_keys(jnp.sum, weights)
            log_sums[tile.row_of(p)] = largest + jnp.log(total)
            return (weights * _kept(tile, refs, step, p, 1 / total)).astype(out.dtype)

        def gather(tile: _Tile, probabilities: Array) -> None:
            heads = _product(probabilities, values[tile.seen], 0, 0)
            out[tile.rows_of(p)] = heads.astype(out.dtype)

        _for_all_rows(plan, compare, normalize, gather)

    _for_each(plan.windows, window)


def _backward_kernel(
    plan: Plan, refs: Operands, before, gradient, attended, log_sums, *others
) -> None:
    (of_queries, of_context, of_previous, of_bias), scratch = others[:4], others[4:]
    sums, room = scratch[:2], scratch[2:]
    number = plan.steps - 1 - pl.program_id(2)
    step = _Step(pl.program_id(0), pl.program_id(1), number)
    end = number == plan.steps - 1
    whole = _in_a_row(refs, before, room, plan, number)
    if of_bias is not None:

        @pl.when((step.lane == 0) & end)
        def _() -> None:
            of_bias[...] = jnp.zeros_like(of_bias)

    def window(index: Array) -> None:
        p = plan.windows - 1 - index
        keys, values = _seen_by(whole, plan, p)
        for ref in sums:
            _begin_sums(ref, plan, end & (index == 0))

        def some_rows(tile: _Tile) -> None:
            rows = tile.rows_of(p)
            incoming, queries = gradient[rows], refs.queries[rows]
            probabilities = jnp.exp(_logits(tile, refs, p, keys) - log_sums[tile.row_of(p)])
            kept = _kept(tile, refs, step, p, 1.0)
            dropped = (probabilities * kept).astype(values.dtype)
            mean = incoming.astype(jnp.float32) * attended[rows].astype(jnp.float32)
            mean = jnp.swapaxes(mean, 0, 1).sum(axis=0, keepdims=True)
            of_dropped = _product(values[tile.seen], incoming, 1, 1)
            of_logits = probabilities * (of_dropped * kept - mean)
            low = of_logits.astype(values.dtype)
            sums[0][tile.seen] += _product(low, queries, 1, 0)
            sums[1][tile.seen] += _product(dropped, incoming, 1, 0)
            of_queries[rows] = _product(low, keys[tile.seen], 0, 0).astype(low.dtype)
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
    number: Array

    @property
    def first_row(self) -> Array:
        return _at(self.number, ROWS)

    @property
    def first_seen(self) -> Array | int:
        """In a window, later queries see later keys."""
        return self.first_row if self.plan.windowed else 0

    def rows_of(self, p: Array) -> Any:
        """Where the queries are among those of all windows of a step."""
        return pl.ds(_at(p, self.plan.queries) + self.first_row, ROWS)

    def row_of(self, p: Array) -> Any:
        """Which row of numbers, one for each query, is theirs."""
        return pl.ds(p * (self.plan.queries // ROWS) + self.number, 1)

    @property
    def seen(self) -> Any:
        """Where the keys are among those of their window."""
        return pl.ds(self.first_seen, self.plan.seen)


def _for_all_rows(plan: Plan, *stages: Callable) -> None:
    """Takes R queries at a time, in stages; each stage gets what the one before returned.

    A stage stands beside the next one of the queries before. So the compiler finds matrix products
    that do not wait for the arithmetic next to them, which it does not look for further away.
    """
    count = plan.queries // ROWS
    unrolled = math.gcd(count, UNROLLED)

    def several(index: Array) -> None:
        tiles = [_Tile(plan, index * unrolled + i) for i in range(unrolled)]
        results: list[tuple] = [()] * unrolled
        for turn in range(unrolled + len(stages) - 1):
            for i, stage in enumerate(stages):
                if 0 <= turn - i < unrolled:
                    results[turn - i] = (stage(tiles[turn - i], *results[turn - i]),)

    _for_each(count // unrolled, several)


def _at(index: Array, length: int) -> Array:
    return pl.multiple_of(index * length, length)


def _for_each(count: int, step: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(0, count, lambda index, _: step(index), None)


def _seen_by(whole: Any, plan: Plan, p: Array) -> list[Any]:
    """The keys and values that a window attends to, among those of a step."""
    return [x.at[pl.ds(_at(p, plan.own_keys), plan.keys)] for x in whole]


def _in_a_row(refs: Operands, before, room: tuple[Any, ...], plan: Plan, number: Array) -> Any:
    """Keys and values of the windows of a step, after those of the window before them."""
    if refs.previous is None:
        return refs.context
    length = plan.own_keys
    neighbors = (None, None) if before is None else before
    sources = zip(room, refs.context, refs.previous, neighbors, strict=True)
    for whole, current, previous, neighbor in sources:
        whole[pl.ds(length, plan.windows * length)] = current[...]

        @pl.when(number == 0)
        def _(whole=whole, previous=previous) -> None:
            whole[pl.ds(0, length)] = previous[...]

        if neighbor is not None:

            @pl.when(number > 0)
            def _(whole=whole, neighbor=neighbor) -> None:
                whole[pl.ds(0, length)] = neighbor[...]

    return room


def _logits(tile: _Tile, refs: Operands, p: Array, keys) -> Array:
    """Logits of a tile, float32, a row for each key."""
    logits = _product(keys[tile.seen], refs.queries[tile.rows_of(p)], 1, 1)
    return logits if refs.bias is None else logits + refs.bias[...]


def _over_keys(reduce: Callable, x: Array) -> Array:
    """A maximum or a sum over keys, [T, R] -> [1, R], in chains that do not wait for each other."""
    return reduce(reduce(x.reshape(-1, LANES, ROWS), axis=0), axis=0, keepdims=True)


def _kept(tile: _Tile, refs: Operands, step: _Step, p: Array, scale: Array | float) -> Any:
    """What probabilities are multiplied with: `scale`, and what dropout makes of it."""
    if refs.seeds is None:
        return scale
    plan, settings = tile.plan, tile.plan.settings
    window = step.lane * settings.blocks + step.number * plan.windows + p
    row = step.head * plan.queries + tile.first_row
    first, each = (x[window] for x in refs.seeds)
    first += (row * plan.keys + tile.first_seen).astype(jnp.uint32) * each
    keys, rows = (jax.lax.broadcasted_iota(jnp.uint32, (LANES, ROWS), i) for i in (0, 1))
    numbers = keys * each + rows * (jnp.uint32(plan.keys) * each)
    parts = [numbers + (first + jnp.uint32(i) * each) for i in range(0, plan.seen, LANES)]
    kept = is_kept(settings.rate, jnp.concatenate(parts))
    return jnp.where(kept, jnp.float32(1 / (1 - settings.rate)) * scale, jnp.float32(0))


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
