"""How the kernels of `pallas` are launched: sizes, what a step has on chip, and what it costs.

Letters: B lanes, K windows of a lane, Q queries and T keys of a window, H heads, D head size, and P
windows of a step.
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

LANES = 128  # of a TPU's vectors: sizes of tiles are multiples of it
ROWS = 128  # queries taken at once; twice as many, with a large window, take minutes to compile
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
    seen = queries + ROWS if operands.bias else keys
    size = size // heads if operands.queries.ndim == 3 else size
    together = max(n for n in range(1, blocks + 1) if blocks % n == 0 and _fits(n, queries))
    return Sizes(lanes, blocks, heads, queries, size, keys, ROWS, seen, together)


def _fits(windows: int, length: int) -> bool:
    return windows == 1 or windows * length <= MOST_TOKENS


def run(
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
