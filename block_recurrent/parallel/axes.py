"""The axes of a mesh, and activations in programs that run on several devices."""

import math
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh  # of devices, or of their numbers alone
DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
LANES = (DATA, FSDP)  # those that share out lanes


def lane_axes(x: Array) -> tuple[Any, tuple[str, ...]]:
    """The mesh that a program runs on, and the axes of it that share out the first axis of `x`.

    There are none on one device, and inside a program for each of several.
    """
    mesh = jax.typeof(x).sharding.mesh
    axes = tuple(name for name in mesh.axis_names if name not in (*mesh.manual_axes, TENSOR))
    devices = math.prod(mesh.shape[name] for name in axes)
    return mesh, axes if devices > 1 and x.shape[0] % devices == 0 else ()


def whole(x: Array) -> Array:
    """`x`, whole on every device."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size <= 1 or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def by_lanes(x: Array) -> Array:
    """`x` [B, ...], whose lanes are shared out and whose other axes are whole.

    So said where the compiler might think better of it: parameters are shared out along the same
    devices, and it must be the parameters that move.
    """
    mesh, axes = lane_axes(x)
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(axes)))
