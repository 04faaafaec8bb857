"""Data parallelism: lanes are shared out over the devices, parameters are on every one of them.

The compiler derives everything else, the sums over devices above all, from where the arguments
of a step lie.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from block_recurrent.state import ModelState

LANES = "lanes"
Tree = TypeVar("Tree")


def make_mesh(batch_size: int) -> Mesh:
    """A row of devices, as many of those there are as share `batch_size` lanes out evenly."""
    devices = jax.devices()
    number = next(n for n in range(len(devices), 0, -1) if batch_size % n == 0)
    return Mesh(np.asarray(devices[:number]), (LANES,))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts all arrays of a tree on every device; no copy is made of those already there."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Shares out arrays [B, ...] by their first axis."""
    return _shard(mesh, batch, PartitionSpec(LANES))


def shard_carried(mesh: Mesh, carried: ModelState) -> ModelState:
    """Shares out a model's carried state, [L, B, ...], by its second axis."""
    return _shard(mesh, carried, PartitionSpec(None, LANES))


def _shard(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, spec))
