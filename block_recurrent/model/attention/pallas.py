"""Attention for TPUs: fused kernels, the bias and its gradient included.

`pallas_kernels` has the kernels; here are their gradient, their place in a program that runs on
several devices, and the layouts. A compiler that shares lanes out over devices cannot look into a
kernel, so it is told that every device takes its own windows, and sums the bias's gradient.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from block_recurrent.model.attention import pallas_kernels, reference
from block_recurrent.model.attention.hashing import make_seeds
from block_recurrent.model.attention.pallas_kernels import LANES, Operands, rows_at_once
from block_recurrent.model.positions import window_bias
from block_recurrent.model.state import KeysValues


class Settings(NamedTuple):
    """What is known when a kernel is compiled: the rate of dropout, and whether to interpret."""

    rate: float
    interpret: bool


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
    return _attend(queries, (context,), (), **dropout, interpret=interpret)


def attend_window(
    queries: Array,
    current: KeysValues,
    preceding: KeysValues,
    bias: Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Array:
    """As `reference.attend_window`, of windows that are multiples of 128."""
    dropout = {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
    return _attend(queries, (preceding, current), (bias,), **dropout, interpret=interpret)


def _attend(
    queries: Array,
    contexts: tuple[KeysValues, ...],
    bias: tuple[Array, ...],
    *,
    dropout_rate: float,
    dropout_key: Array | None,
    interpret: bool,
) -> Array:
    dropping = dropout_key is not None and dropout_rate > 0
    windows = math.prod(queries.shape[:-3])
    folded = Operands(
        _fold(queries),
        tuple(_fold(context.keys) for context in contexts),
        tuple(_fold(context.values) for context in contexts),
        bias,
        make_seeds(dropout_key, windows) if dropping else (),
    )
    heads = _fused(Settings(dropout_rate, interpret), folded)
    return jnp.swapaxes(heads, 1, 2).reshape(queries.shape)


def _fold(x: Array) -> Array:
    """[..., T, H, D] -> [G, H, T, D]."""
    return jnp.swapaxes(x.reshape(-1, *x.shape[-3:]), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(settings: Settings, operands: Operands) -> Array:
    """Attention on `operands`, whose bias is [H, W] here, or nothing."""
    return _partitioned_forward(operands, settings)


def _fused_forward(settings: Settings, operands: Operands) -> tuple[Array, Operands]:
    return _fused(settings, operands), operands


def _fused_backward(settings: Settings, operands: Operands, gradient: Array) -> tuple[Any]:
    gradients = _partitioned_backward(operands, gradient, settings)
    return (Operands(*gradients, seeds=(None,) * len(operands.seeds)),)


_fused.defvjp(_fused_forward, _fused_backward)


def _tiles(operands: Operands) -> Callable:
    """Lays biases out for the kernels, [H, W] -> [H, R, W + R]."""
    rows = rows_at_once(operands.queries.shape[2])
    return lambda bias: tuple(window_bias(x, rows) for x in bias)


def _forward(operands: Operands, settings: Settings) -> Array:
    tiled = operands._replace(bias=_tiles(operands)(operands.bias))
    return pallas_kernels.forward(tiled, *settings)


def _backward(operands: Operands, gradient: Array, settings: Settings) -> tuple[Any, ...]:
    tile, pull = jax.vjp(_tiles(operands), operands.bias)
    tiled = operands._replace(bias=tile)
    *gradients, of_tile = pallas_kernels.backward(tiled, gradient, *settings)
    return *gradients, *pull(of_tile)


def _partitioned(function: Callable) -> Callable:
    """`function(*arrays, settings)`, each device taking its windows where these are shared out.

    What has two axes is the bias or its gradient, which is whole everywhere; the first axis of all
    else is that of windows.
    """

    def partition(settings: Settings, mesh: Any, arguments: Any, results: Any) -> tuple:
        axes = arguments[0].queries.sharding.spec[0]

        def own_windows(*arrays: Any) -> Any:
            out = function(*arrays, settings)
            return jax.tree.map(lambda x: jax.lax.psum(x, axes) if _whole(x) else x, out)

        def place(x: Any) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec() if _whole(x) else PartitionSpec(axes))

        body = functools.partial(function, settings=settings) if axes is None else own_windows
        return mesh, body, jax.tree.map(place, results), jax.tree.map(place, arguments)

    settings_position = len(inspect.signature(function).parameters) - 1
    partitioned = custom_partitioning(function, static_argnums=(settings_position,))
    partitioned.def_partition(partition, sharding_rule=_sharding_rule)
    return partitioned


def _whole(x: Any) -> bool:
    return len(x.shape) == 2


def _sharding_rule(
    settings: Settings, mesh: Any, arguments: list[Any], results: list[Any]
) -> tuple[str, dict[str, Any]]:
    """The axes of arguments and results by names, of which only `windows` may be shared out."""
    del settings, mesh
    names = [
        [f"array{number}axis{axis}" for axis in range(len(x.shape))]
        for number, x in enumerate([*arguments, *results])
    ]
    replicated = []
    for axes in names:
        if len(axes) != 2:
            axes[0] = "windows"
        replicated += [axis for axis in axes if axis != "windows"]
    sides = names[: len(arguments)], names[len(arguments) :]
    rule = " -> ".join(", ".join(map(" ".join, side)) for side in sides)
    return rule, {"need_replication_factors": tuple(replicated)}


_partitioned_forward = _partitioned(_forward)
_partitioned_backward = _partitioned(_backward)
