"""A mesh of devices with three axes, and the sharding of batches and states over it.

`data` and `fsdp` shard batch rows. `fsdp` also shards every large parameter, which is gathered when
it is needed. `tensor` shards heads and hidden units. The compiler derives everything else, such as
sums over devices, from the sharding of a step's arguments.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from block_recurrent.config import ConfigError, MeshConfig
from block_recurrent.parallel import processes
from block_recurrent.parallel.axes import BATCH, DATA, FSDP, TENSOR, AnyMesh, partition


def make_mesh(
    config: MeshConfig,
    batch_size: int = 0,
    devices: Sequence[Any] | None = None,
    *,
    exact: bool = False,
) -> Mesh:
    """The devices of a run, in JAX's own order, which keeps those of a process together.

    Args:
      config: number of devices along each axis.
      batch_size: B, batch rows to shard, those of a microbatch in training; 0 if there are none.
      devices: all devices unless given.
      exact: all devices have to be used. Otherwise, if `config.data` is -1, the mesh has only as
        many as divide the batch.

    Raises:
      ConfigError: there are too few devices, or the mesh does not divide the batch.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(config, batch_size, len(devices), exact)
    used = math.prod(sizes)
    if used > len(devices) or (exact and used < len(devices)):
        raise ConfigError(
            f"{_shown(sizes)} are {used} devices, but there are {len(devices)}: use a machine with "
            "as many, or set mesh.data = -1 and mesh.fsdp = 1 and mesh.tensor = 1"
        )
    return Mesh(np.asarray(devices[:used]).reshape(sizes), (DATA, FSDP, TENSOR))


def _sizes(config: MeshConfig, batch_size: int, number: int, exact: bool) -> tuple[int, ...]:
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = max(number // -math.prod(sizes), 1)
        if sizes[0] == -1 and not exact:
            rest = next((n for n in range(rest, 0, -1) if batch_size % (n * sizes[1]) == 0), 1)
        sizes[sizes.index(-1)] = rest
    check_batch_size(batch_size, sizes)
    return tuple(sizes)


def check_batch_size(batch_size: int, sizes: Sequence[int]) -> None:
    """Raises ConfigError unless mesh axes of these sizes divide the batch evenly."""
    groups = sizes[0] * sizes[1]
    if batch_size % groups:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be sharded evenly over {groups} groups of "
            f"devices ({_shown(sizes)}): data.batch_size must be a multiple of mesh.data x "
            f"mesh.fsdp x training.accumulate_steps; set data.batch_size = "
            f"{-(-batch_size // groups) * groups} x training.accumulate_steps"
        )


def _shown(sizes: Sequence[int]) -> str:
    return "mesh.data = {}, mesh.fsdp = {}, mesh.tensor = {}".format(*sizes)


def batch_shards(mesh: AnyMesh) -> int:
    """The number of shards of a batch on a mesh."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def reading_mesh(config: MeshConfig) -> MeshConfig:
    """The mesh for reading a run's model: the run's, or the default if devices are too few."""
    sizes = (config.data, config.fsdp, config.tensor)
    needed = math.prod(size for size in sizes if size > 0)
    return config if processes.several() or needed <= len(jax.devices()) else MeshConfig()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [B, ...]: by batch rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def carried_sharding(mesh: AnyMesh, carried: Any) -> Any:
    """The sharding of a carried state: batch rows along `data` and `fsdp`, heads along `tensor`."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, partition(axes, BATCH, TENSOR)), carried.axes
    )


def vote_array(mesh: Mesh, vote: bool) -> jax.Array:
    """Votes [devices] float32, where this process sets those of its devices to 1 or 0."""
    sharding = NamedSharding(mesh, PartitionSpec((DATA, FSDP, TENSOR)))
    own = np.full(1, vote, np.float32)
    return jax.make_array_from_callback((mesh.size,), sharding, lambda index: own)


def rows_of_process(mesh: Mesh, batch_size: int) -> list[int]:
    """The batch rows of this process's devices, in order; they may have gaps."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    slices = [index[0] for index in indices if index is not None]
    return sorted({row for rows in slices for row in range(*rows.indices(batch_size))})


def put_batch(batch: Any, mesh: Mesh, batch_size: int) -> Any:
    """A batch [B, ...] on the devices, from the rows [rows, ...] of `rows_of_process`."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            sharding, array, (batch_size, *array.shape[1:])
        ),
        batch,
    )


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes of arrays (`jax.ShapeDtypeStruct`), with these shardings."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def put(tree: Any, shardings: Any) -> Any:
    """Arrays with these shardings, from arrays that have them or that every process has whole."""

    def put_one(array: Any, sharding: NamedSharding) -> jax.Array:
        if getattr(array, "sharding", None) == sharding:
            return array
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put_one, tree, shardings)
