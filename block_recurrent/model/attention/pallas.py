"""Attention for TPUs: fused kernels, the bias and its gradient included.

`pallas_kernels` has the kernels, `pallas_launch` how they are launched, and `pallas_devices` their
place in a program that runs on several devices; here are their gradient and the layouts.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.attention import pallas_kernels, reference
from block_recurrent.model.attention.pallas_devices import on_every_device
from block_recurrent.model.attention.pallas_launch import LANES, ROWS, Operands, Settings
from block_recurrent.model.dropout import make_seeds
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues

MOST_WINDOW = 2048  # larger ones do not fit the fast memory
LEAST_HEAD = 8  # sizes of heads are multiples of it


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
    return pallas_kernels.forward(tiled, settings)


@on_every_device
def _backward(settings: Settings, operands: Operands, gradient: Array) -> tuple[Any, ...]:
    tile, pull = jax.vjp(_tile, operands.bias)
    tiled = operands._replace(bias=tile)
    *gradients, of_tile = pallas_kernels.backward(tiled, gradient, settings)
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
