"""How the kernels of `pallas` are launched: sizes, what a step has on chip, and what it costs.

Letters: B lanes, K windows of a lane, Q queries and T keys of a window, H heads, D head size, and P
windows of a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from block_recurrent.model.state import KeysValues

LANES = 128  # of a TPU's vectors: sizes of tiles are multiples of it
ROWS = 128  # queries taken at once; twice as many, with a large window, take minutes to compile
MOST_TOKENS = 1024  # in the windows of one step, to keep it longer than its overhead
LEAST_MEMORY = 16 * 2**20  # of a kernel, in bytes: what the compiler gives anyway


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
