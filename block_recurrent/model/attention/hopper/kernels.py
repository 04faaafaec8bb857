"""Attention kernels for NVIDIA's Hopper GPUs, in Pallas Mosaic-GPU.

A program of a kernel has three warpgroups. Two of them multiply matrices, each for 64 tokens of one
head. The third copies to the chip what the next step needs. A step takes the next 64 of the keys
that a token sees, or of the tokens that see a key. The forward pass scales its sums whenever it
meets a larger logit, and keeps one number for each token: the logarithm of the sum of exponentials.
The gradient computes probabilities from it (Dao et al. 2022, arXiv 2205.14135). One of its kernels
sums over keys, one over tokens, and one over tiles. Each sum has a fixed order.

Logarithms and exponentials are those of base 2. Probabilities go to the next product through shared
memory, not registers, because jax's interpreter cannot follow the latter.

Letters: B batch rows, N tokens of a row, W window, H heads, D head size, R tokens of a program.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import Array, lax

from block_recurrent.model.array_types import DistanceBias
from block_recurrent.model.layers import is_kept
from block_recurrent.model.positions import window_bias

SIDE = 64  # tokens and keys of a tile
GROUPS = 2  # warpgroups that multiply
ROWS = GROUPS * SIDE  # R
STAGES = 2  # steps whose operands are on the chip
COPYING_REGISTERS = 40  # of a thread that copies; those that multiply get the others
LOG2_E = math.log2(math.e)
HIDDEN = -1e30  # the logit of a key that a token does not see; infinity gives NaN
MATRIX = plgpu.Layout.WGMMA  # how the registers of a warpgroup hold a tile
BY_ROW, BY_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)  # and a number for each row or column
# Matrix products of a tile, by the names that kernels have in a program.
PRODUCTS = {
    "attention_forward": 2,
    "attention_of_queries": 3,
    "attention_of_keys": 4,
    "attention_of_bias": 2,
}


class Settings(NamedTuple):
    """What is known when a kernel is compiled."""

    window: int  # W
    rate: float  # of dropout
    detached: bool  # no gradient reaches the window before a block
    interpret: Any  # parameters of the interpreter, or None to compile


class Operands(NamedTuple):
    """What is attended with, in memory or by reference."""

    queries: Any  # [B, N, H, D]
    keys: Any  # [B, W + N, H, D], those of the window before the first token first
    values: Any  # likewise
    bias: Any  # [H, W] float32, in kernels what `make_tile` makes of it
    seeds: Any  # of dropout: two arrays [B, N / W, 1]


class Known(NamedTuple):
    """What the gradient knows of each token."""

    gradient: Any  # of what it attended, [B, N, H, D]
    log_sums: Any  # [B, H, N] float32, base 2
    means: Any  # [B, H, N] float32, sums over keys of a probability times its gradient


def forward(settings: Settings, operands: Operands) -> tuple[Array, Array]:
    """What tokens attend, [B, N, H, D], and `Known.log_sums`."""
    queries = operands.queries
    lanes, tokens, heads, size = queries.shape

    def attention_forward(*refs: Any) -> None:
        x, (out, log_sums, own, weights, own_sums, arrived) = _operands(refs)
        here = _Place.of_program()

        def context(run: Callable) -> None:
            here.fetch(arrived, (here.rows(x.queries), own))
            zeros = plgpu.layout_cast(jnp.zeros(SIDE), BY_ROW)
            attended = plgpu.layout_cast(jnp.zeros((SIDE, size)), MATRIX)
            attended, largest, total = run((attended, zeros + HIDDEN, zeros))
            scale = _by_row(_scale(settings) / total, size)
            own[here.group] = (attended * scale).astype(own.dtype)
            own_sums[here.group] = largest + jnp.log(total) * LOG2_E
            here.give((own, here.rows(out)), (own_sums, here.numbers(log_sums)))

        def step(index: Any, keys: Any, values: Any, carry: Any) -> Any:
            attended, largest, total = carry
            column = index[0] * SIDE
            logits = _product(own.at[here.group], keys.T) * LOG2_E + here.bias(x.bias, column)
            new = jnp.maximum(largest, logits.max(axis=1))
            exponentials = jnp.exp2(logits - _by_row(new))
            old = jnp.exp2(largest - new)
            kept = _kept(settings, x.seeds, here, here.first, here.number * ROWS + column)
            weights[here.group] = _chosen(kept, exponentials).astype(weights.dtype)
            plgpu.commit_smem()
            more = _product(weights.at[here.group], values)
            total = total * old + exponentials.sum(axis=1)
            return attended * _by_row(old, size) + more, new, total

        keys = here.some_rows(x.keys, SIDE, lambda i: here.number * GROUPS + i)
        _pipeline(settings, step, context, (x.keys, x.values), [keys, keys])

    scratch = [
        _vectors(queries),
        _square(queries.dtype),
        _numbers(),
        plgpu.Barrier(num_barriers=GROUPS),
    ]
    out = _like(queries), jax.ShapeDtypeStruct((lanes, heads, tokens), jnp.float32)
    grid = heads, tokens // ROWS, lanes
    return _run(attention_forward, settings, grid, operands, out, scratch)


def gradient_of_queries(settings: Settings, operands: Operands, known: Known) -> Array:
    """The gradient of the queries, in their shape and dtype: sums over keys."""
    queries = operands.queries
    lanes, tokens, heads, size = queries.shape

    def attention_of_queries(*refs: Any) -> None:
        x, (gradient, log_sums, means, out, *scratch) = _operands(refs)
        own, incoming, own_sums, own_means, of_logits, arrived = scratch
        here = _Place.of_program()

        def context(run: Callable) -> None:
            vectors = (here.rows(x.queries), own), (here.rows(gradient), incoming)
            numbers = (here.numbers(log_sums), own_sums), (here.numbers(means), own_means)
            here.fetch(arrived, *vectors, *numbers)

            def sum_up(sums: Any) -> None:
                run((sums, *(_load(y.at[here.group], BY_ROW) for y in (own_sums, own_means))))
                own[here.group] = sums[...].astype(own.dtype)

            pl.run_scoped(sum_up, plgpu.WGMMAAccumulatorRef((SIDE, size)))
            here.give((own, here.rows(out)))

        def step(index: Any, keys: Any, values: Any, carry: Any) -> Any:
            sums, log_sum, mean = carry
            column = index[0] * SIDE
            logits = _product(own.at[here.group], keys.T) * LOG2_E + here.bias(x.bias, column)
            of_kept = _product(incoming.at[here.group], values.T)
            kept = _kept(settings, x.seeds, here, here.first, here.number * ROWS + column)
            found = _of_logits(settings, logits, of_kept, kept, _by_row(log_sum), _by_row(mean))
            of_logits[here.group] = found.astype(of_logits.dtype)
            plgpu.commit_smem()
            plgpu.wgmma(sums, of_logits.at[here.group], keys)
            plgpu.wgmma_wait(0)
            return carry

        keys = here.some_rows(x.keys, SIDE, lambda i: here.number * GROUPS + i)
        _pipeline(settings, step, context, (x.keys, x.values), [keys, keys])

    vectors, numbers = _vectors(queries), _numbers()
    arrived = plgpu.Barrier(num_barriers=GROUPS, num_arrivals=4)
    scratch = [vectors, vectors, numbers, numbers, _square(queries.dtype), arrived]
    grid = heads, tokens // ROWS, lanes
    arguments = *operands, *known
    return _run(attention_of_queries, settings, grid, arguments, _like(queries), scratch)


def gradient_of_keys(settings: Settings, operands: Operands, known: Known) -> tuple[Array, Array]:
    """The gradients of keys and values, in their shape and dtype: sums over tokens.

    A program has keys where others have tokens, so its tiles are transposed.
    """
    lanes, tokens, heads, size = operands.queries.shape
    before = settings.window // SIDE  # tiles of tokens that see the first key of a program
    # Row x of this tile is a key, column y a token, and y - x their distance.
    turned = operands._replace(bias=operands.bias[:, ::-1, ::-1])

    def attention_of_keys(*refs: Any) -> None:
        x, (gradient, log_sums, means, of_keys, of_values, *scratch) = _operands(refs)
        keys, values, weights, of_logits, arrived = scratch
        here = _Place.of_program()

        def token(index: Any) -> Any:
            """The first token of a step; there may be none of that number."""
            return (here.number * GROUPS - before + index) * SIDE

        def existing(index: Any) -> Any:
            """The number of that tile of tokens, or of the nearest one there is."""
            return jnp.clip(token(index), 0, tokens - SIDE) // SIDE

        def context(run: Callable) -> None:
            here.fetch(arrived, (here.rows(x.keys), keys), (here.rows(x.values), values))

            def sum_up(*sums: Any) -> None:
                run(sums)
                of_values = sums[1][...] * _scale(settings)
                keys[here.group] = sums[0][...].astype(keys.dtype)
                values[here.group] = of_values.astype(values.dtype)

            pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((SIDE, size))] * 2)
            here.give((keys, here.rows(of_keys)), (values, here.rows(of_values)))

        def step(index: Any, queries: Any, incoming: Any, log_sum: Any, mean: Any, sums: Any):
            first = token(index[0])
            sees = (first >= 0) & (first < tokens)
            if settings.detached:  # tokens of the key's own block alone
                block = lax.div(here.first, settings.window) - 1
                sees &= lax.div(first, settings.window) == block
            logits = _product(keys.at[here.group], queries.T) * LOG2_E
            logits += here.bias(x.bias, index[0] * SIDE)
            log_sum = _load(log_sum, BY_COLUMN) + jnp.where(sees, 0.0, -HIDDEN)
            probabilities = jnp.exp2(logits - _by_column(log_sum))
            first = existing(index[0]) * SIDE
            kept = _kept(settings, x.seeds, here, first, here.first, transposed=True)
            # A probability that is dropped is negative here, which saves the registers of a mask.
            signed = _chosen(kept, probabilities, -probabilities)
            weights[here.group] = jnp.maximum(signed, 0.0).astype(weights.dtype)
            plgpu.commit_smem()
            plgpu.wgmma(sums[1], weights.at[here.group], incoming)
            of_kept = _product(values.at[here.group], incoming.T) * _scale(settings)
            of_kept = _chosen(signed > 0, of_kept)
            found = jnp.abs(signed) * (of_kept - _by_column(_load(mean, BY_COLUMN)))
            of_logits[here.group] = found.astype(of_logits.dtype)
            plgpu.commit_smem()
            plgpu.wgmma(sums[0], of_logits.at[here.group], queries)
            plgpu.wgmma_wait(0)
            return sums

        rows = here.some_rows(x.queries, SIDE, existing)
        numbers = here.some_numbers(SIDE, existing)
        arguments = x.queries, gradient, log_sums, means
        _pipeline(settings, step, context, arguments, [rows, rows, numbers, numbers])

    vectors, square = _vectors(operands.queries), _square(operands.queries.dtype)
    arrived = plgpu.Barrier(num_barriers=GROUPS, num_arrivals=2)
    scratch = [vectors, vectors, square, square, arrived]
    grid = heads, operands.keys.shape[1] // ROWS, lanes
    out = _like(operands.keys), _like(operands.values)
    return _run(attention_of_keys, settings, grid, (*turned, *known), out, scratch)


def gradient_of_bias(settings: Settings, operands: Operands, known: Known) -> Array:
    """The gradient of a tile, as `make_tile` makes it: sums over tokens and batch rows.

    A program has 64 columns of a tile of R tokens, and takes the tokens of a batch row one tile
    after another. The sum over batch rows is another kernel's, from [B, H, R, W + R] float32.
    """
    lanes, tokens, heads, _ = operands.queries.shape
    columns = settings.window + ROWS

    def attention_of_bias(*refs: Any) -> None:
        x, (gradient, log_sums, means, out, sums) = _operands(refs)
        here = _Place.of_program()
        rows, column = pl.ds(here.group * SIDE, SIDE), here.number * SIDE

        def context(run: Callable) -> None:
            sums[here.group] = run(plgpu.layout_cast(jnp.zeros((SIDE, SIDE)), MATRIX))
            here.give((sums, out.at[here.lane, here.head, rows, pl.ds(column, SIDE)]))

        def step(index: Any, queries, incoming, log_sum, mean, keys, values, sums):
            logits = _product(queries.at[rows], keys.T) * LOG2_E + here.bias(x.bias, column)
            of_kept = _product(incoming.at[rows], values.T)
            first = index[0] * ROWS
            kept = _kept(settings, x.seeds, here, first + here.group * SIDE, first + column)
            log_sum, mean = (_by_row(_load(y.at[rows], BY_ROW)) for y in (log_sum, mean))
            plgpu.commit_smem()  # a copy may overwrite only then what registers have read
            return sums + _of_logits(settings, logits, of_kept, kept, log_sum, mean)

        own = here.some_rows(x.queries, ROWS, lambda i: i)
        numbers = here.some_numbers(ROWS, lambda i: i)
        keys = here.some_rows(x.keys, SIDE, lambda i: i * GROUPS + here.number)
        specs = [own, own, numbers, numbers, keys, keys]
        arguments = x.queries, gradient, log_sums, means, x.keys, x.values
        _pipeline(settings, step, context, arguments, specs, tokens // ROWS)

    out = jax.ShapeDtypeStruct((lanes, heads, ROWS, columns), jnp.float32)
    grid, scratch = (heads, columns // SIDE, lanes), [_square(jnp.float32)]
    found: Any = _run(attention_of_bias, settings, grid, (*operands, *known), out, scratch)
    upper, lower = jnp.split(found.sum(axis=0), GROUPS, axis=1)
    return _pad(upper, SIDE, 0, 0.0) + _pad(lower, 0, SIDE, 0.0)


def make_tile(bias: DistanceBias) -> Array:
    """Lays a bias out for the kernels, [H, W] -> [H, 64, W + 192], in units of log 2.

    The tile of 64 tokens and the W + 64 keys that they see is between 64 columns of hidden keys on
    either side. From one column on it is that of a program's first 64 tokens, and from another one
    that of the others.
    """
    tile = jnp.maximum(window_bias(bias, SIDE), HIDDEN)
    return _pad(tile, SIDE, SIDE, HIDDEN) * LOG2_E


def _pad(tile: Array, before: int, after: int, value: float) -> Array:
    return jnp.pad(tile, ((0, 0), (0, 0), (before, after)), constant_values=value)


class _Place(NamedTuple):
    """What a warpgroup works at: one head of a batch row, and 64 rows from `first` on.

    Attributes:
      number: of the program among those of the head.
      group: number of the warpgroup.
    """

    head: Any
    number: Any
    lane: Any
    group: Any

    @classmethod
    def of_program(cls) -> "_Place":
        return cls(*(lax.axis_index(name) for name in cls._fields))

    @property
    def first(self) -> Any:
        return self.number * ROWS + self.group * SIDE

    def rows(self, ref: Any) -> Any:
        """The rows of an array [B, T, H, D]."""
        return ref.at[self.lane, pl.ds(self.first, SIDE), self.head]

    def numbers(self, ref: Any) -> Any:
        """Their numbers in an array [B, H, T]."""
        return ref.at[self.lane, self.head, pl.ds(self.first, SIDE)]

    def bias(self, tile: Any, column: Any) -> Array:
        """The bias of the warpgroup's rows, in 64 columns of the program's tile, [64, 64]."""
        columns = pl.ds(column + SIDE - self.group * SIDE, SIDE)
        return _load(tile.at[self.head, :, columns], MATRIX, optimized=False)

    def fetch(self, arrived: Any, *copies: tuple[Any, Any]) -> None:
        """Copies to the warpgroup's parts of arrays on the chip, and waits."""
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target.at[self.group], arrived.at[self.group])
        plgpu.barrier_wait(arrived.at[self.group])

    def give(self, *copies: tuple[Any, Any]) -> None:
        """Copies from the warpgroup's parts of arrays on the chip, and waits."""
        plgpu.commit_smem()
        for source, target in copies:
            plgpu.copy_smem_to_gmem(source.at[self.group], target)
        plgpu.wait_smem_to_gmem(0)

    def some_rows(self, ref: Any, rows: int, number: Callable) -> Any:
        """What a step has of an array [B, T, H, D]: that `number` of so many rows."""
        shape = None, rows, None, ref.shape[3]
        return plgpu.BlockSpec(
            shape, lambda i: (self.lane, number(i), self.head, 0), transforms=_swizzled(ref.dtype)
        )

    def some_numbers(self, rows: int, number: Callable) -> Any:
        """What a step has of an array [B, H, T]."""
        return plgpu.BlockSpec((None, None, rows), lambda i: (self.lane, self.head, number(i)))


def _run(
    body: Callable, settings: Settings, grid: Any, arguments: Any, out: Any, scratch: Any
) -> Any:
    """Runs programs of a kernel over heads, tiles and batch rows."""
    assert body.__name__ in PRODUCTS
    kernel = plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=grid,
        grid_names=_Place._fields[:3],
        num_threads=GROUPS + 1,
        thread_name=_Place._fields[3],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=settings.interpret,
    )
    with jax.named_scope(body.__name__):
        return kernel(*jax.tree.leaves(arguments))


def kernel_operations(name: str, shapes: Sequence[Sequence[int]]) -> int:
    """Operations of the products of a kernel, by its name and the shapes of its operands."""
    queries, keys, _, tile = shapes[:4]
    rows = keys if name == "attention_of_keys" else queries
    return PRODUCTS[name] * 2 * math.prod(rows) * (tile[2] - SIDE)


def _pipeline(
    settings: Settings,
    step: Callable,
    context: Callable,
    refs: Sequence[Any],
    specs: list[Any],
    steps: int | None = None,
) -> None:
    """Runs `step` for all tiles that a program's rows see, or for so many."""
    plgpu.emit_pipeline_warp_specialized(
        step,
        grid=((settings.window + ROWS) // SIDE if steps is None else steps,),
        in_specs=specs,
        memory_registers=COPYING_REGISTERS,
        max_concurrent_steps=STAGES,
        wg_axis=_Place._fields[3],
        num_compute_wgs=GROUPS,
        compute_context=context,
    )(*refs)


def _operands(refs: tuple[Any, ...]) -> tuple[Operands, tuple[Any, ...]]:
    """The operands among the references that a kernel gets, and the others."""
    return Operands(*refs[:4], seeds=refs[4:6]), refs[6:]


def _of_logits(
    settings: Settings, logits: Array, of_kept: Array, kept: Any, log_sum: Array, mean: Array
) -> Array:
    """The gradient of the logits of a tile, from that of its probabilities after dropout."""
    of_probabilities = _chosen(kept, of_kept * _scale(settings))
    return jnp.exp2(logits - log_sum) * (of_probabilities - mean)


def _scale(settings: Settings) -> float:
    """Factor of the probabilities that dropout keeps."""
    return 1 / (1 - settings.rate)


def _kept(
    settings: Settings, seeds: Any, here: _Place, token: Any, key: Any, *, transposed: bool = False
) -> Any:
    """Which probabilities of a tile dropout keeps, bool [64, 64] or None for all.

    The tile begins at `token` of N and at `key` of W + N; its rows are keys if it is transposed.
    """
    if settings.rate == 0:
        return None
    window = settings.window
    block, row = lax.div(token, window), lax.rem(token, window)
    first = (here.head * window + row) * (2 * window) + key - block * window
    of_tokens, of_keys = (
        plgpu.layout_cast(lax.broadcasted_iota(jnp.uint32, (SIDE, SIDE), axis), MATRIX)
        for axis in ((1, 0) if transposed else (0, 1))
    )
    word, step = (x[here.lane, block, 0] for x in seeds)
    offset = word + first.astype(jnp.uint32) * step
    numbers = offset + of_tokens * (jnp.uint32(2 * window) * step) + of_keys * step
    return is_kept(settings.rate, numbers)


def _chosen(condition: Any, x: Array, other: Any = 0.0) -> Array:
    """`x` where the condition holds or there is none."""
    return x if condition is None else jnp.where(condition, x, other)


def _product(x: Any, y: Any) -> Array:
    """The product of two matrices on the chip, float32 in registers."""

    def multiply(sums: Any) -> Array:
        plgpu.wgmma(sums, x, y)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((x.shape[0], y.shape[1])))


def _load(ref: Any, layout: Any, *, optimized: bool = True) -> Array:
    index = () if jax.__version_info__ >= (0, 11) else ((),)  # before jax 0.11 it is needed
    return plgpu.load(ref, *index, layout=layout, optimized=optimized)


def _by_row(x: Array, columns: int = SIDE) -> Array:
    return lax.broadcast_in_dim(x, (SIDE, columns), (0,))


def _by_column(x: Array) -> Array:
    return lax.broadcast_in_dim(x, (SIDE, SIDE), (1,))


def _like(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _swizzled(dtype: Any) -> tuple[Any, Any]:
    """The layout in shared memory that matrix units and copies take."""
    swizzle = 128  # bytes
    tiling = plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    return tiling, plgpu.SwizzleTransform(swizzle)


def _vectors(x: Any) -> Any:
    """Room on the chip for the rows of each warpgroup."""
    return plgpu.SMEM((GROUPS, SIDE, x.shape[3]), x.dtype, transforms=_swizzled(x.dtype))


def _square(dtype: Any) -> Any:
    """Room on the chip for a tile of each warpgroup."""
    return plgpu.SMEM((GROUPS, SIDE, SIDE), dtype, transforms=_swizzled(dtype))


def _numbers() -> Any:
    """Room on the chip for a number for each row of each warpgroup."""
    return plgpu.SMEM((GROUPS, SIDE), jnp.float32)
