"""Attention for NVIDIA's Hopper GPUs: fused kernels, dropout, the bias and its gradient included.

Attention to states has neither a bias nor dropout, so that it is cuDNN's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.array_types import Blocks, DistanceBias, Key
from block_recurrent.model.attention import cudnn
from block_recurrent.model.attention.choice import (
    Attention,
    AttentionImpossible,
    device_kind,
)
from block_recurrent.model.attention.hopper import kernels
from block_recurrent.model.attention.hopper.kernels import ROWS, Known, Operands, Settings
from block_recurrent.model.layers import make_seeds, seeds_of_parts
from block_recurrent.model.rematerialization import keep
from block_recurrent.model.state import KeysValues
from block_recurrent.parallel.axes import on_every_device, tensor_shards

CAPABILITY = "9.0"  # NVIDIA's number of Hopper, whose instructions no other generation has
HEAD_SIZES = (64, 128)
VECTORS = "BNH"  # axes of queries, and so on
AXES = Operands(VECTORS, VECTORS, VECTORS, "H", "BKH")


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation, for a GPU.

    Raises:
      AttentionImpossible: no Hopper GPU, or a layer that does not suit the kernels.
    """
    del platform
    capability = device_kind(unknown=CAPABILITY)
    if capability != CAPABILITY:
        reason = f"needs an NVIDIA GPU with compute capability {CAPABILITY}, not {capability}"
    elif config.dtype != "bfloat16":
        reason = f"needs dtype 'bfloat16', not {config.dtype!r}"
    elif config.window % ROWS:
        reason = f"needs a window that is a multiple of {ROWS}, not {config.window}"
    elif config.head_size not in HEAD_SIZES:
        reason = f"needs a head_size of 64 or 128, not {config.head_size}"
    else:
        return ATTENTION
    raise AttentionImpossible(reason)


def attend_window(
    queries: Blocks,
    current: KeysValues,
    previous: KeysValues,
    bias: DistanceBias,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    interpret: Any = None,
) -> Blocks:
    """As `reference.attend_window`, of windows that are multiples of 128.

    `interpret` has the parameters of jax's interpreter, which runs kernels on a CPU.
    """
    lanes, blocks, window, heads, size = queries.shape
    shards = tensor_shards(queries, heads)
    rate, seeds = 0.0, (jnp.zeros((lanes, blocks, shards), jnp.uint32),) * 2
    if dropout_key is not None and dropout_rate > 0.0:
        seeds = make_seeds(dropout_key, (lanes, blocks))
        rate, seeds = dropout_rate, seeds_of_parts(seeds, shards, heads // shards * 2 * window**2)
    settings = Settings(window, rate, detached, interpret)
    keys, values = (
        jnp.concatenate([before, x.reshape(before.shape[0], -1, heads, size)], axis=1)
        for before, x in zip(previous, current, strict=True)
    )
    folded = Operands(queries.reshape(lanes, -1, heads, size), keys, values, bias, seeds)
    attended: Any = _fused(settings, folded)
    return attended.reshape(queries.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: Settings, operands: Operands) -> Array:
    """Attention, of the shape and dtype of the queries."""
    return _forward(settings, operands)[0]


def _forward(settings: Settings, operands: Operands) -> tuple[Array, Any]:
    def forward(*arrays: Any) -> Any:
        operands = Operands(*arrays)
        return kernels.forward(settings, operands._replace(bias=kernels.make_tile(operands.bias)))

    heads = operands.queries.shape[2]
    results = on_every_device(forward, tuple(operands), tuple(AXES), (VECTORS, "BH"), heads)
    attended, log_sums = keep(tuple(results))
    return attended, (operands, attended, log_sums)


def _backward(settings: Settings, saved: Any, gradient: Array) -> tuple[Operands]:
    """Gradients of all operands, each in its dtype, that of the bias in float32."""

    def backward(gradient: Array, attended: Array, log_sums: Array, *arrays: Any) -> Any:
        operands = Operands(*arrays)
        tile, pull = jax.vjp(kernels.make_tile, operands.bias)
        operands = operands._replace(bias=tile)
        wide = (x.astype(jnp.float32) for x in (gradient, attended))
        means = jnp.einsum("bnhd,bnhd->bhn", *wide, precision="highest")
        known = Known(gradient, log_sums, means)
        (of_bias,) = pull(kernels.gradient_of_bias(settings, operands, known) / kernels.LOG2_E)
        of_keys = kernels.gradient_of_keys(settings, operands, known)
        return kernels.gradient_of_queries(settings, operands, known), *of_keys, of_bias

    operands, attended, log_sums = saved
    arguments = gradient, attended, log_sums, *operands
    axes, heads = (VECTORS, VECTORS, "BH", *AXES), operands.queries.shape[2]
    found = on_every_device(backward, arguments, axes, tuple(AXES)[:4], heads)
    return (Operands(*found, seeds=(None, None)),)


_fused.defvjp(_forward, _backward)


# Built once, because models compare equal only if they hold the same functions.
ATTENTION = Attention(cudnn.attend, attend_window)
