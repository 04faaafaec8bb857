"""Heads for TPUs: a kernel reads projections once, splits them, scales their vectors, writes once.

Left to the compiler, the sums over the vectors of a head transpose every tile of memory, from eight
tokens of one head to eight heads of one token, and back again.

Letters: B batch rows, T tokens, P projections side by side, H heads, D head size.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Float32

from block_recurrent.model import layers
from block_recurrent.model.array_types import Vectors
from block_recurrent.model.attention.tpu.plan import LANES, LEAST_MEMORY
from block_recurrent.model.layers import EPSILON, Length
from block_recurrent.parallel.axes import on_every_device

MOST_BYTES = 2**20  # of the projections that a step has on chip
ROWS = 16  # tokens of a step are a multiple of it
AXES = "BTH", "PH"  # of projections, and of the scales of their vectors


class Settings(NamedTuple):
    """What is known when a kernel is compiled."""

    normalized: tuple[bool, ...]  # of each projection, whether its vectors are scaled
    interpret: bool  # run kernels as plain array operations


def split_heads(
    projected: Float[Array, "... T PHD"],
    lengths: Sequence[Length],
    num_heads: int,
    *,
    interpret: bool = False,
) -> list[Vectors]:
    """As `layers.split_heads`, which it calls where sizes are not multiples of 128."""
    tokens, width = projected.shape[-2:]
    size = width // len(lengths) // num_heads
    if tokens % LANES or size % LANES:
        return layers.split_heads(projected, lengths, num_heads)
    settings = Settings(tuple(x is not None for x in lengths), interpret)
    scales = jnp.stack(
        [jnp.broadcast_to(jnp.float32(0 if x is None else x), num_heads) for x in lengths]
    )
    parts: Any = _split(settings, projected.reshape(-1, tokens, width), scales)
    return [x.reshape(*projected.shape[:-1], num_heads, size) for x in parts]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _split(
    settings: Settings, projected: Float[Array, "B T PHD"], scales: Float32[Array, "P H"]
) -> list[Float[Array, "B T HD"]]:
    parts = len(settings.normalized)

    def forward(projected: Array, scales: Array) -> list[Array]:
        *leading, width = projected.shape
        out = [jax.ShapeDtypeStruct((*leading, width // parts), projected.dtype)] * parts
        out_specs = [_some_rows(projected, x) for x in out]
        arguments = (projected, scales)
        return list(_run(_forward_kernel, "heads_forward", settings, arguments, out, out_specs))

    arguments, result_axes = (projected, scales), ["BTH"] * parts
    return on_every_device(forward, arguments, AXES, result_axes, scales.shape[1])


def _split_forward(settings: Settings, *inputs: Array) -> tuple[list[Array], tuple[Array, ...]]:
    return _split(settings, *inputs), inputs


def _split_backward(
    settings: Settings, saved: tuple[Array, Array], gradients: list[Array]
) -> tuple[Array, Array]:
    parts = len(settings.normalized)

    def backward(projected: Array, scales: Array, gradients: list[Array]) -> tuple[Array, Array]:
        lanes, _, width = projected.shape
        sums = jax.ShapeDtypeStruct((lanes, parts, width // parts), jnp.float32)
        own_sums = pl.BlockSpec((None, *sums.shape[1:]), lambda b, t: (b, 0, 0))
        out = (jax.ShapeDtypeStruct(projected.shape, projected.dtype), sums)
        out_specs = (_some_rows(projected, projected), own_sums)
        arguments = (projected, scales, gradients)
        of_projected, of_scales = _run(
            _backward_kernel, "heads_backward", settings, arguments, out, out_specs
        )
        return of_projected, of_scales.sum(axis=0).reshape(*scales.shape, -1).sum(axis=-1)

    arguments, num_heads = (*saved, gradients), saved[1].shape[1]
    return on_every_device(backward, arguments, (*AXES, "BTH"), AXES, num_heads)


_split.defvjp(_split_forward, _split_backward)


def _forward_kernel(settings: Settings, projected, scales, *outs) -> None:
    for part, out in enumerate(outs):
        for head, ours in _heads(out, scales):
            x = projected[:, pl.ds(part * out.shape[1] + ours.start, ours.size)]
            if settings.normalized[part]:
                x = layers.l2_normalize(x, scales[part, head])
            out[:, ours] = x


def _backward_kernel(
    settings: Settings, projected, scales, gradients, of_projected, of_scales
) -> None:
    """`of_scales` [P, H*D] is a batch row's gradient of the scales before it is summed over D."""

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        of_scales[...] = jnp.zeros_like(of_scales)

    for part, gradient in enumerate(gradients):
        for head, ours in _heads(gradient, scales):
            place = pl.ds(part * gradient.shape[1] + ours.start, ours.size)
            incoming = gradient[:, ours]
            if settings.normalized[part]:
                x, wide = projected[:, place].astype(jnp.float32), incoming.astype(jnp.float32)
                inverse = jax.lax.rsqrt((x * x).sum(axis=1, keepdims=True) + EPSILON)
                unit = x * inverse
                along = wide * unit
                of_scales[pl.ds(part, 1), ours] += along.sum(axis=0, keepdims=True)
                across = wide - unit * along.sum(axis=1, keepdims=True)
                incoming = (across * (inverse * scales[part, head])).astype(incoming.dtype)
            of_projected[:, place] = incoming


def _heads(ref, scales) -> list[tuple[int, Any]]:
    """Number and columns of every head of a projection [R, H*D]."""
    num_heads = scales.shape[1]
    size = ref.shape[1] // num_heads
    return [(head, pl.ds(head * size, size)) for head in range(num_heads)]


def _rows(projected: Any) -> int:
    """How many tokens a step takes."""
    _, tokens, width = projected.shape
    fits = MOST_BYTES // (width * projected.dtype.itemsize)
    return max(n for n in range(ROWS, tokens + 1, ROWS) if tokens % n == 0 and n <= max(fits, ROWS))


def _some_rows(projected: Any, x: Any) -> pl.BlockSpec:
    """The tokens of a step, of an array [B, T, ...]."""
    return pl.BlockSpec((None, _rows(projected), x.shape[2]), lambda b, t: (b, t, 0))


def _run(
    kernel: Any, name: str, settings: Settings, arguments: Any, out: Any, out_specs: Any
) -> Any:
    """Runs a kernel over batch rows and some tokens at a time."""
    projected, _, *gradients = arguments
    lanes, tokens, _ = projected.shape
    rows, some_rows = _rows(projected), functools.partial(_some_rows, projected)
    scales = pl.BlockSpec(memory_space=pltpu.SMEM)
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((arguments, out)))
    return pl.pallas_call(
        functools.partial(kernel, settings),
        name=name,
        grid=(lanes, tokens // rows),
        in_specs=(some_rows(projected), scales, *jax.tree.map(some_rows, gradients)),
        out_specs=out_specs,
        out_shape=out,
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=projected.size // LANES, bytes_accessed=moved
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),  # a v4 and a v5p have two cores
            vmem_limit_bytes=max(LEAST_MEMORY, 4 * moved * rows // (lanes * tokens)),
        ),
        interpret=settings.interpret,
    )(*arguments)
