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
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from block_recurrent.model.attention.hashing import keep_factors

LANES = 128  # of a TPU's vectors: sizes of tiles are multiples of it
MOST_ROWS = 128
MOST_TOKENS = 1024  # in the windows of one step, to keep it longer than its overhead
LEAST_MEMORY = 16 * 2**20  # of a kernel, in bytes: what the compiler gives anyway


class Operands(NamedTuple):
    """What is attended with.

    Attributes:
      queries: [B, K*Q, H*D] or [B, H, K*Q, D].
      keys: one such array of K*T, or the preceding and the current windows', of K*W each.
      values: as the keys.
      bias: [H*R, W + R] float32 with two windows, where minus infinity hides a key; or nothing.
      seeds: of dropout, two arrays [B*K] uint32, or nothing.
    """

    queries: Any
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    bias: tuple[Any, ...] = ()
    seeds: tuple[Any, ...] = ()


class Sizes(NamedTuple):
    """Sizes of a kernel.

    Attributes:
      lanes: B.
      blocks: K, windows of a lane.
      heads: H.
      queries: Q.
      size: D.
      keys: T, of all sources together.
      rows: R, queries taken at once.
      seen: how many keys these see together.
      windows: P, of a step.
    """

    lanes: int
    blocks: int
    heads: int
    queries: int
    size: int
    keys: int
    rows: int
    seen: int
    windows: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps: the windows of a head follow each other, so that its bias stays on chip."""
        return self.heads, self.lanes, self.blocks // self.windows


def make_sizes(operands: Operands, blocks: int, heads: int) -> Sizes:
    """The sizes that suit the operands."""
    lanes, *_, length, size = operands.queries.shape
    queries = length // blocks
    keys = sum(x.shape[-2] for x in operands.keys) // blocks
    rows = rows_at_once(queries)
    seen = queries + rows if operands.bias else keys
    size = size // heads if operands.queries.ndim == 3 else size
    together = max(n for n in range(1, blocks + 1) if blocks % n == 0 and _fits(n, queries))
    return Sizes(lanes, blocks, heads, queries, size, keys, rows, seen, together)


def _fits(windows: int, length: int) -> bool:
    return windows == 1 or windows * length <= MOST_TOKENS


def rows_at_once(queries: int) -> int:
    """R: about a quarter of the queries, in multiples of 128 that divide them."""
    most = max(LANES, min(queries // 4, MOST_ROWS))
    return max(n for n in range(LANES, most + 1, LANES) if queries % n == 0)


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
    return _call(kernel, "attention_forward", sizes, operands, (), out, 2, interpret)


def backward(
    operands: Operands, gradient: Array, blocks: int, heads: int, rate: float, interpret: bool
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Gradients of queries, keys, values, each in its dtype, and of the bias, summed."""
    sizes = make_sizes(operands, blocks, heads)
    out = jax.tree.map(_like, tuple(operands)[:4])
    kernel = functools.partial(_backward_kernel, sizes, rate)
    return _call(kernel, "attention_backward", sizes, operands, (gradient,), out, 5, interpret)


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


def _call(
    kernel: Callable,
    name: str,
    sizes: Sizes,
    operands: Operands,
    more: tuple[Array, ...],
    out: Any,
    products: int,
    interpret: bool,
) -> Any:
    """Runs a kernel over heads and windows; `products` are those of a tile."""
    arguments = (operands, *more)
    scratch = _scratch(sizes, operands, summing=bool(more))
    return pl.pallas_call(
        kernel,
        name=name,
        grid=sizes.grid,
        in_specs=jax.tree.map(functools.partial(_spec, sizes), arguments),
        out_specs=jax.tree.map(functools.partial(_spec, sizes), out),
        out_shape=out,
        scratch_shapes=scratch,
        cost_estimate=_cost(sizes, products, (arguments, out)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_memory(sizes, (arguments, out), scratch),
        ),
        interpret=interpret,
    )(*arguments)


def _spec(sizes: Sizes, x: Any) -> pl.BlockSpec:
    """What a step has of an array: P windows of a head, a head's bias, or all seeds."""
    if x.ndim == 1:
        return pl.BlockSpec(memory_space=pltpu.SMEM)
    if x.ndim == 2:
        return pl.BlockSpec((sizes.rows, sizes.seen), lambda h, b, k: (h, 0))
    length = x.shape[-2] // sizes.grid[2]
    if x.ndim == 3:
        return pl.BlockSpec((None, length, sizes.size), lambda h, b, k: (b, k, h))
    return pl.BlockSpec((None, None, length, sizes.size), lambda h, b, k: (b, h, k, 0))


def _scratch(sizes: Sizes, operands: Operands, summing: bool) -> list[Any]:
    """Room for the gradients of keys and values, and for keys and values in a row."""
    shape = (sizes.keys, sizes.size)
    sums = [pltpu.VMEM(shape, jnp.float32)] * 2 if summing else []
    copied = len(operands.keys) > 1
    return sums + [pltpu.VMEM(shape, operands.keys[0].dtype)] * (2 if copied else 0)


def _cost(sizes: Sizes, products: int, arrays: Any) -> pl.CostEstimate:
    """What a kernel executes: operations of its products, exponentials, and bytes moved."""
    logits = sizes.lanes * sizes.blocks * sizes.heads * sizes.queries * sizes.seen
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    return pl.CostEstimate(
        flops=products * 2 * logits * sizes.size, transcendentals=logits, bytes_accessed=moved
    )


def _memory(sizes: Sizes, arrays: Any, scratch: list[Any]) -> int:
    """Bytes of fast memory: blocks twice, as the next ones arrive meanwhile, and a few tiles."""
    steps = math.prod(sizes.grid)
    blocks = 0
    for x in jax.tree.leaves(arrays):
        parts = {1: 0, 2: 1 / sizes.heads}.get(x.ndim, 1 / steps)
        lanes = max(x.shape[-1], LANES) / x.shape[-1]
        blocks += int(x.size * lanes * parts) * x.dtype.itemsize
    room = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in scratch)
    return max(LEAST_MEMORY, 2 * blocks + room + 8 * sizes.rows * sizes.seen * 4)
