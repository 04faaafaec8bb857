"""Attention kernels: one head over one set of keys at a time, all on chip.

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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from block_recurrent.model.attention import reference
from block_recurrent.model.attention.tpu import LANES, LEAST_MEMORY, on_every_device
from block_recurrent.model.layers import keep_factors, make_seeds
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues

MOST_WINDOW = 2048  # larger ones do not fit the fast memory
LEAST_HEAD = 8  # sizes of heads are multiples of it
ROWS = 128  # queries taken at once; twice as many, with a large window, take minutes to compile
MOST_TOKENS = 1024  # in the windows of one step, to keep it longer than its overhead


class Operands(NamedTuple):
    """What is attended with.

    Attributes:
      queries: [B, K*Q, H*D] or [B, H, K*Q, D].
      context: such arrays of K*T.
      previous: such arrays of W, the window before the first; or None, where there are no windows.
      bias: [H*R, W + R] float32 with windows, where minus infinity hides a key; or None.
      seeds: of dropout, two arrays [B*K] uint32; or None.
    """

    queries: Any
    context: KeysValues
    previous: KeysValues | None
    bias: Any
    seeds: tuple[Any, Any] | None


class Settings(NamedTuple):
    """What is known when a kernel is compiled.

    Attributes:
      blocks: K, windows of a lane.
      heads: H.
      detached: whether no gradient reaches the window before a block.
      rate: of dropout.
      interpret: whether to run kernels as plain array operations.
    """

    blocks: int
    heads: int
    detached: bool
    rate: float
    interpret: bool


class Sizes(NamedTuple):
    """Sizes of a kernel.

    Attributes:
      lanes: B.
      blocks: K, windows of a lane.
      heads: H.
      queries: Q.
      size: D.
      keys: T of a window, and of the one before it.
      own_keys: T of a window alone.
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
    own_keys: int
    rows: int
    seen: int
    windows: int

    @property
    def steps(self) -> int:
        """Steps that the windows of a lane take."""
        return self.blocks // self.windows

    @property
    def windowed(self) -> bool:
        """Whether tokens attend to the window before them."""
        return self.keys > self.own_keys

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps: the windows of a head follow each other, so that its bias stays on chip."""
        return self.heads, self.lanes, self.steps


def make_sizes(operands: Operands, settings: Settings) -> Sizes:
    """The sizes that suit the operands."""
    blocks, heads = settings.blocks, settings.heads
    lanes, *_, length, size = operands.queries.shape
    queries, own_keys = length // blocks, operands.context.keys.shape[-2] // blocks
    windowed = operands.previous is not None
    keys, seen = (2 * own_keys, own_keys + ROWS) if windowed else (own_keys, own_keys)
    size = size // heads if operands.queries.ndim == 3 else size
    together = max(n for n in range(1, blocks + 1) if blocks % n == 0 and _fits(n, queries))
    return Sizes(lanes, blocks, heads, queries, size, keys, own_keys, ROWS, seen, together)


def _fits(windows: int, length: int) -> bool:
    return windows == 1 or windows * length <= MOST_TOKENS


class Layout:
    """What a step of a kernel has on chip of each array.

    Args:
      sizes: of the kernel.
      backwards: steps go from the last windows of a lane to the first.
    """

    def __init__(self, sizes: Sizes, *, backwards: bool):
        self.sizes = sizes
        self.last = sizes.steps - 1 if backwards else None

    def own(self, x: Any) -> pl.BlockSpec:
        """P windows of a lane and head."""
        return self._spec(x, x.shape[-2] // self.sizes.steps, self.step)

    def before(self, x: Any) -> pl.BlockSpec:
        """The window before these, or any where there is none."""
        sizes = self.sizes

        def window(k: Any) -> Any:
            return jnp.maximum(self.step(k) * sizes.windows - 1, 0)

        return self._spec(x, x.shape[-2] // sizes.blocks, window)

    def previous(self, x: Any) -> pl.BlockSpec:
        """The window before the lane's first."""
        return self._spec(x, x.shape[-2], lambda k: 0)

    def bias(self, x: Any) -> pl.BlockSpec:
        """That of a head."""
        del x
        return pl.BlockSpec((self.sizes.rows, self.sizes.seen), lambda h, b, k: (h, 0))

    def seeds(self, x: Any) -> pl.BlockSpec:
        """All of them."""
        del x
        return pl.BlockSpec(memory_space=pltpu.SMEM)

    def operands(self, operands: Operands) -> Operands:
        """Of all operands."""
        return Operands(
            self.own(operands.queries),
            jax.tree.map(self.own, operands.context),
            jax.tree.map(self.previous, operands.previous),
            jax.tree.map(self.bias, operands.bias),
            jax.tree.map(self.seeds, operands.seeds),
        )

    def step(self, k: Any) -> Any:
        """The number of a step in a lane, in the order of its windows."""
        return k if self.last is None else self.last - k

    def _spec(self, x: Any, length: int, number: Callable[[Any], Any]) -> pl.BlockSpec:
        size = self.sizes.size
        if x.ndim == 3:
            return pl.BlockSpec((None, length, size), lambda h, b, k: (b, number(k), h))
        return pl.BlockSpec((None, None, length, size), lambda h, b, k: (b, h, number(k), 0))


def run(
    kernel: Callable,
    name: str,
    sizes: Sizes,
    arguments: tuple[Any, Any],
    results: tuple[Any, Any],
    scratch: list[Any],
    products: int,
    interpret: bool,
) -> Any:
    """Runs a kernel over heads and windows.

    Args:
      kernel: its body.
      name: for profiles.
      sizes: of it.
      arguments: arrays, and what a step has of each.
      results: the same of what comes out.
      scratch: what it has on chip besides.
      products: matrix products of a tile.
      interpret: whether to run it as plain array operations.
    """
    (arrays, in_specs), (out, out_specs) = arguments, results
    leaves, specs = jax.tree.leaves((arrays, out)), jax.tree.leaves((in_specs, out_specs))
    pairs = list(zip(leaves, specs, strict=True))
    return pl.pallas_call(
        kernel,
        name=name,
        grid=sizes.grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out,
        scratch_shapes=scratch,
        cost_estimate=_cost(sizes, products, pairs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_memory(sizes, pairs, scratch),
        ),
        interpret=interpret,
    )(*arrays)


def room_for_keys(sizes: Sizes, dtype: Any) -> list[Any]:
    """Scratch for two arrays of the keys that a window attends to."""
    return [pltpu.VMEM((sizes.keys, sizes.size), dtype)] * 2


def _cost(sizes: Sizes, products: int, arrays: list[tuple[Any, pl.BlockSpec]]) -> pl.CostEstimate:
    """What a kernel executes: operations of its products, exponentials, and bytes moved."""
    logits = sizes.lanes * sizes.blocks * sizes.heads * sizes.queries * sizes.seen
    moved = sum(
        min(x.size * x.dtype.itemsize, math.prod(sizes.grid) * _block_bytes(x, spec))
        for x, spec in arrays
    )
    return pl.CostEstimate(
        flops=products * 2 * logits * sizes.size, transcendentals=logits, bytes_accessed=moved
    )


def _block_bytes(x: Any, spec: pl.BlockSpec) -> int:
    """Bytes of what a step has of an array; of seeds, which are few, none."""
    shape: list[Any] = [size for size in spec.block_shape or () if size is not None]
    return math.prod(shape) * x.dtype.itemsize if shape else 0


def _on_chip(shape: Sequence[Any], dtype: Any) -> int:
    """Bytes of an array in fast memory, whose last axis fills whole vectors."""
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes[:-1]) * -(-sizes[-1] // LANES) * LANES * jnp.dtype(dtype).itemsize


def _memory(sizes: Sizes, arrays: list[tuple[Any, pl.BlockSpec]], scratch: list[Any]) -> int:
    """Bytes of fast memory: blocks twice, as the next ones arrive meanwhile, and a few tiles."""
    blocks = sum(_on_chip(spec.block_shape, x.dtype) for x, spec in arrays if spec.block_shape)
    room = sum(_on_chip(x.shape, x.dtype) for x in scratch)
    return max(LEAST_MEMORY, 2 * blocks + room + 8 * sizes.rows * sizes.seen * 4)


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


def attend(
    queries: Array,
    context: KeysValues,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """As `reference.attend` without a bias; that itself where sizes are not multiples of 128."""
    dropout = {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
    if queries.shape[-3] % LANES or context.keys.shape[-3] % LANES:
        return reference.attend(queries, context, **dropout)
    return _attend(queries, context, None, None, **dropout, interpret=interpret)


def attend_window(
    queries: Array,
    current: KeysValues,
    previous: KeysValues,
    bias: Array,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """As `reference.attend_window`, of windows that are multiples of 128."""
    dropout = {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
    return _attend(
        queries, current, previous, bias, detached=detached, **dropout, interpret=interpret
    )


def _attend(
    queries: Array,
    context: KeysValues,
    previous: KeysValues | None,
    bias: Array | None,
    *,
    detached: bool = False,
    dropout_rate: float,
    dropout_key: Array | None,
    interpret: bool,
) -> Array:
    blocks = 1 if queries.ndim == 4 else queries.shape[-4]
    seeds = None
    if dropout_key is not None and dropout_rate > 0:
        seeds = make_seeds(dropout_key, (math.prod(queries.shape[:-3]),))
    fold = functools.partial(_fold, blocks)
    previous = jax.tree.map(functools.partial(_fold, 1), previous)
    folded = Operands(fold(queries), jax.tree.map(fold, context), previous, bias, seeds)
    settings = Settings(blocks, queries.shape[-2], detached, dropout_rate, interpret)
    heads: Any = _fused(settings, folded)
    if heads.ndim == 4:
        heads = jnp.swapaxes(heads, 1, 2)
    return heads.reshape(queries.shape)


def _fold(blocks: int, x: Array) -> Array:
    """[..., K, T, H, D] -> [B, K*T, H*D], or [B, H, K*T, D] where D is no multiple of 128."""
    *_, length, heads, size = x.shape
    if size % LANES == 0:
        return x.reshape(-1, blocks * length, heads * size)
    return jnp.swapaxes(x.reshape(-1, blocks * length, heads, size), 1, 2)


def _tile(bias: Array | None) -> Array | None:
    """Lays a bias out for the kernels, [H, W] -> [H*R, W + R]."""
    if bias is None:
        return None
    tile = window_bias(bias, ROWS)
    return tile.reshape(-1, tile.shape[2])


@on_every_device
def _forward(settings: Settings, operands: Operands) -> Array:
    tiled = operands._replace(bias=_tile(operands.bias))
    return forward(tiled, settings)


@on_every_device
def _backward(settings: Settings, operands: Operands, gradient: Array) -> tuple[Any, ...]:
    tile, pull = jax.vjp(_tile, operands.bias)
    tiled = operands._replace(bias=tile)
    *gradients, of_tile = backward(tiled, gradient, settings)
    return *gradients, *pull(of_tile)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: Settings, operands: Operands) -> Array:
    """Attention on `operands`, whose bias is [H, W] here, or nothing."""
    return _forward(settings, operands)


def _fused_forward(settings: Settings, operands: Operands) -> tuple[Array, Operands]:
    return _forward(settings, operands), operands


def _fused_backward(settings: Settings, operands: Operands, gradient: Array) -> tuple[Any]:
    gradients = _backward(settings, operands, gradient)
    return (Operands(*gradients, seeds=jax.tree.map(lambda x: None, operands.seeds)),)


_fused.defvjp(_fused_forward, _fused_backward)
