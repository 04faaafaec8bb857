"""Data parallelism: lanes are shared out over the devices, parameters are on every one of them.

The compiler derives everything else, the sums over devices above all, from where the arguments
of a step lie.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LANES = "lanes"


def make_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A row of devices, as many of those there are as share `batch_size` lanes out evenly.

    `devices` are those there are, unless they are given.
    """
    devices = jax.devices() if devices is None else devices
    number = next(n for n in range(len(devices), 0, -1) if batch_size % n == 0)
    return Mesh(np.asarray(devices[:number]), (LANES,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...]: shared out by their first axis."""
    return NamedSharding(mesh, PartitionSpec(LANES))


def carried_sharding(mesh: Mesh) -> NamedSharding:
    """Of a model's carried state, [L, B, ...]: shared out by its second axis."""
    return NamedSharding(mesh, PartitionSpec(None, LANES))
