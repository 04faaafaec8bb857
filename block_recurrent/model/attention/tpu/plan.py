"""How the attention kernels are run: operands, what a step has on chip, and what it costs.

Letters: B batch rows (lanes), K windows of a lane, Q queries and T keys of a window, H heads,
D head size, R queries that are taken at once, and P windows of a step. The windows of a lane are
concatenated, `[B, K*T, H*D]`, which is the layout of projections; where D is no multiple of 128,
heads come first, `[B, H, K*T, D]`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from block_recurrent.model.array_types import Seeds
from block_recurrent.model.state import KeysValues

LANES = 128  # of a TPU's vectors: sizes of tiles are multiples of it
LEAST_MEMORY = 16 * 2**20  # of a kernel, in bytes: what the compiler gives anyway
ROWS = 128  # queries taken at once; twice as many, with a large window, take minutes to compile
# In the windows of one step and the one before, by the bytes of a number: to keep a step longer
# than its overhead, and within the 16 MB of a v4.
MOST_TOKENS = {2: 2560, 4: 640}


class Operands(NamedTuple):
    """What is attended with; without windows `previous` and `bias` are None."""

    queries: Any  # [B, K*Q, H*D] or [B, H, K*Q, D]
    context: KeysValues  # such arrays of K*T
    previous: KeysValues | None  # such arrays of W, the window before the first
    bias: Any  # [H, W] float32, in kernels [H*(W + R), R]; minus infinity hides a key
    seeds: Seeds | None  # of dropout, for each window and each device's heads, in kernels flat


class Settings(NamedTuple):
    """What is known when a kernel is compiled."""

    blocks: int  # K, windows of a lane
    heads: int  # H, of all devices
    size: int  # D
    detached: bool  # no gradient reaches the window before a block
    rate: float  # of dropout
    interpret: bool  # run kernels as plain array operations

    @property
    def heads_first(self) -> bool:
        """Whether arrays are [B, H, K*T, D] rather than [B, K*T, H*D]."""
        return self.size % LANES != 0

    @property
    def array_axes(self) -> str:
        """Those of queries, as `on_every_device` takes them."""
        return "BHT" if self.heads_first else "BTH"

    @property
    def axes(self) -> Operands:
        """Those of all operands."""
        return Operands(*[self.array_axes] * 3, "H", "BKH")  # type: ignore[arg-type]


class Plan(NamedTuple):
    """Sizes of a kernel, what a step has on chip of each array, and how the kernel is run."""

    settings: Settings
    lanes: int  # B
    heads: int  # H
    queries: int  # Q
    keys: int  # T of a window, and of the one before it
    own_keys: int  # T of a window alone
    seen: int  # keys that R queries see together
    windows: int  # P, of a step
    backwards: bool  # steps go from the last windows of a lane to the first

    @property
    def steps(self) -> int:
        """Steps that the windows of a lane take."""
        return self.settings.blocks // self.windows

    @property
    def windowed(self) -> bool:
        """Whether tokens attend to the window before them."""
        return self.keys > self.own_keys

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps: the windows of a head follow each other, so that its bias stays on chip."""
        return self.heads, self.lanes, self.steps

    def step(self, k: Any) -> Any:
        """The number of a step in a lane, in the order of its windows."""
        return self.steps - 1 - k if self.backwards else k

    def own(self, x: Any) -> pl.BlockSpec:
        """P windows of a lane and head."""
        return self._spec(x.shape[-2] // self.steps, self.step)

    @property
    def log_sums(self) -> jax.ShapeDtypeStruct:
        """The logarithm of each query's sum of exponentials, [B, H, steps, P*Q/R, R]."""
        rows = self.windows * self.queries // ROWS
        shape = self.lanes, self.heads, self.steps, rows, ROWS
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    @property
    def own_log_sums(self) -> pl.BlockSpec:
        """Those of a step."""
        shape = None, None, None, *self.log_sums.shape[3:]
        return pl.BlockSpec(shape, lambda h, b, k: (b, h, self.step(k), 0, 0))

    def before(self, x: Any) -> pl.BlockSpec:
        """The window before these, or any where there is none."""
        return self._spec(
            x.shape[-2] // self.settings.blocks,
            lambda k: jnp.maximum(self.step(k) * self.windows - 1, 0),
        )

    def specs(self, operands: Operands) -> Operands:
        """What a step has of all operands: of seeds all, of the bias that of a head."""
        bias = pl.BlockSpec((self.seen, ROWS), lambda h, b, k: (h, 0))
        return Operands(
            self.own(operands.queries),
            jax.tree.map(self.own, operands.context),
            jax.tree.map(lambda x: self._spec(x.shape[-2], lambda k: 0), operands.previous),
            jax.tree.map(lambda x: bias, operands.bias),
            jax.tree.map(lambda x: pl.BlockSpec(memory_space=pltpu.SMEM), operands.seeds),
        )

    def _spec(self, length: int, number: Callable[[Any], Any]) -> pl.BlockSpec:
        size = self.settings.size
        if self.settings.heads_first:
            return pl.BlockSpec((None, None, length, size), lambda h, b, k: (b, h, number(k), 0))
        return pl.BlockSpec((None, length, size), lambda h, b, k: (b, number(k), h))

    def room(self, keys: int, dtype: Any) -> list[Any]:
        """Scratch for two arrays of keys or values."""
        return [pltpu.VMEM((keys, self.settings.size), dtype)] * 2

    def run(
        self,
        kernel: Callable,
        name: str,
        operands: Operands,
        others: tuple[tuple[Any, pl.BlockSpec], ...],
        results: tuple[Any, Any],
        scratch: list[Any],
        products: int,
    ) -> Any:
        """Runs a kernel over heads and windows.

        Args:
          kernel: its body, which takes this plan first.
          name: for profiles.
          operands: its next arguments; the context is passed once more for the window before those
            of a step, if there is one.
          others: further arguments, and what a step has of each.
          results: shapes of what comes out, and what a step has of each.
          scratch: what it has on chip besides keys and values.
          products: matrix products of a tile.
        """
        needed = operands.previous is not None and self.steps > 1
        before = operands.context if needed else None
        arrays = (operands, before, *(x for x, _ in others))
        in_specs = (
            self.specs(operands),
            jax.tree.map(self.before, before),
            *(spec for _, spec in others),
        )
        out, out_specs = results
        if self.windowed:
            keys = (self.windows + 1) * self.own_keys
            scratch = scratch + self.room(keys, operands.context.keys.dtype)
        leaves, specs = jax.tree.leaves((arrays, out)), jax.tree.leaves((in_specs, out_specs))
        blocks = list(zip(leaves, specs, strict=True))
        return pl.pallas_call(
            functools.partial(kernel, self),
            name=name,
            grid=self.grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out,
            scratch_shapes=scratch,
            cost_estimate=self._cost(products, blocks),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=self._memory(blocks, scratch),
            ),
            interpret=self.settings.interpret,
        )(*arrays)

    def _cost(self, products: int, arrays: list[tuple[Any, pl.BlockSpec]]) -> pl.CostEstimate:
        """What a kernel executes: operations of its products, exponentials, and bytes moved."""

        def moved(x: Any, spec: pl.BlockSpec) -> int:
            shape: list[Any] = [size for size in spec.block_shape or () if size is not None]
            step = math.prod(shape) * x.dtype.itemsize if shape else 0  # the few seeds count as 0
            return min(x.size * x.dtype.itemsize, math.prod(self.grid) * step)

        logits = self.lanes * self.settings.blocks * self.heads * self.queries * self.seen
        return pl.CostEstimate(
            flops=products * 2 * logits * self.settings.size,
            transcendentals=logits,
            bytes_accessed=sum(moved(x, spec) for x, spec in arrays),
        )

    def _memory(self, arrays: list[tuple[Any, pl.BlockSpec]], scratch: list[Any]) -> int:
        """Bytes of fast memory: blocks twice, as the next ones arrive meanwhile, and tiles."""

        def on_chip(shape: Any, dtype: Any) -> int:  # the last axis fills whole vectors
            sizes = [size for size in shape if size is not None]
            return (
                math.prod(sizes[:-1]) * -(-sizes[-1] // LANES) * LANES * jnp.dtype(dtype).itemsize
            )

        blocks = sum(on_chip(spec.block_shape, x.dtype) for x, spec in arrays if spec.block_shape)
        room = sum(on_chip(x.shape, x.dtype) for x in scratch)
        return max(LEAST_MEMORY, 2 * blocks + room + 8 * ROWS * self.seen * 4)


def make_plan(operands: Operands, settings: Settings, *, backwards: bool = False) -> Plan:
    """The plan that suits the operands, whose lanes and heads may be those of one device."""
    blocks = settings.blocks
    queries = operands.queries.shape[-2] // blocks
    own_keys = operands.context.keys.shape[-2] // blocks
    windowed = operands.previous is not None
    keys, seen = (2 * own_keys, own_keys + ROWS) if windowed else (own_keys, own_keys)
    most = MOST_TOKENS[operands.queries.dtype.itemsize]
    fitting = [n for n in range(2, blocks + 1) if blocks % n == 0 and (n + 1) * queries <= most]
    lanes, second, *_, last = operands.queries.shape
    heads = second if settings.heads_first else last // settings.size
    windows = max(fitting, default=1)
    return Plan(settings, lanes, heads, queries, keys, own_keys, seen, windows, backwards)
