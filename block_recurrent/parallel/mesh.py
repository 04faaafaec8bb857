"""Devices in three axes, and where on them every array lies.

`data` and `fsdp` share out the lanes, `fsdp` also every large parameter, which is put together when
it is needed; `tensor` shares out heads and hidden units. The compiler derives everything else, the
sums over devices above all, from where the arguments of a step lie.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from block_recurrent.config import ConfigError, MeshConfig
from block_recurrent.parallel import processes
from block_recurrent.parallel.axes import DATA, FSDP, LANES, TENSOR, AnyMesh


def make_mesh(
    config: MeshConfig,
    batch_size: int = 0,
    devices: Sequence[Any] | None = None,
    *,
    exact: bool = False,
) -> Mesh:
    """The devices of a run.

    They are taken in JAX's own order, in which those of a process follow one another.

    Args:
      config: how many along each axis.
      batch_size: B, lanes to share out; 0 if there are none.
      devices: those there are, unless they are given.
      exact: all of them have to be used. Otherwise, where `config.data` is -1, they may be fewer:
        as many as share the lanes out evenly.

    Raises:
      ConfigError: there are not as many devices, or the lanes cannot be shared out evenly.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(config, batch_size, len(devices), exact)
    used = math.prod(sizes)
    if used > len(devices) or (exact and used < len(devices)):
        raise ConfigError(
            f"{_shown(sizes)} are {used} devices, but there are {len(devices)}: set one of them "
            "to -1, what is left, or start on as many (--gin.mesh.fsdp=1 and the like)"
        )
    return Mesh(np.asarray(devices[:used]).reshape(sizes), (DATA, FSDP, TENSOR))


def _sizes(config: MeshConfig, batch_size: int, number: int, exact: bool) -> tuple[int, ...]:
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = max(number // -math.prod(sizes), 1)
        if sizes[0] == -1 and not exact:
            rest = next((n for n in range(rest, 0, -1) if batch_size % (n * sizes[1]) == 0), 1)
        sizes[sizes.index(-1)] = rest
    check_lanes(batch_size, sizes)
    return tuple(sizes)


def check_lanes(batch_size: int, sizes: Sequence[int]) -> None:
    """Sees to it that lanes can be shared out evenly over axes of these sizes.

    Raises:
      ConfigError: they cannot.
    """
    if batch_size % (sizes[0] * sizes[1]):
        raise ConfigError(
            f"{batch_size} lanes cannot be shared out evenly among {sizes[0] * sizes[1]} groups "
            f"of devices ({_shown(sizes)}): data.batch_size must be a multiple of mesh.data x "
            "mesh.fsdp"
        )


def lane_groups(mesh: AnyMesh) -> int:
    """How many groups of devices share the lanes out."""
    return math.prod(mesh.shape[axis] for axis in LANES)


def reading_mesh(config: MeshConfig) -> MeshConfig:
    """The mesh of a run, or, for reading its model where there are fewer devices, the default."""
    sizes = (config.data, config.fsdp, config.tensor)
    needed = math.prod(size for size in sizes if size > 0)
    return config if processes.several() or needed <= len(jax.devices()) else MeshConfig()


def _shown(sizes: Sequence[int]) -> str:
    return ", ".join(
        f"mesh.{name} = {size}" for name, size in zip((DATA, FSDP, TENSOR), sizes, strict=True)
    )


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...]: shared out by their first axis."""
    return NamedSharding(mesh, PartitionSpec(LANES))


def carried_sharding(mesh: AnyMesh, carried: Any) -> Any:
    """Of a model's carried state: batch rows along `data` and `fsdp`, heads along `tensor`."""
    along = {"B": LANES, "H": TENSOR}

    def sharding(letters: str) -> NamedSharding:
        axes = [along.get(letter) for letter in letters]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, carried.axes)


def vote_array(mesh: Mesh, vote: bool) -> jax.Array:
    """[devices] float32: of this process's devices what it votes, 1 or 0."""
    sharding = NamedSharding(mesh, PartitionSpec((DATA, FSDP, TENSOR)))
    own = np.full(1, vote, np.float32)
    return jax.make_array_from_callback((mesh.size,), sharding, lambda index: own)


def lanes_of_process(mesh: Mesh, batch_size: int) -> list[int]:
    """The lanes that devices of this process read, in order.

    Asked of the sharding, for they need not be neighbours.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    slices = [place[0] for place in places if place is not None]
    return sorted({row for rows in slices for row in range(*rows.indices(batch_size))})


def place_batch(batch: Any, mesh: Mesh, rows: Sequence[int], batch_size: int) -> Any:
    """A process's lanes of a batch, on the devices that read them.

    Args:
      batch: arrays [rows, ...].
      mesh: the devices.
      rows: what `lanes_of_process` returns.
      batch_size: B, lanes of all processes.
    """
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)

    def share_out(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            wanted = np.arange(*index[0].indices(batch_size))
            return array[np.searchsorted(rows, wanted)]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(share_out, batch)


def with_places(shapes: Any, shardings: Any) -> Any:
    """Shapes of arrays, with where they lie."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def fetch(array: jax.Array, process: int) -> np.ndarray | None:
    """A copy of an array, whole, in one process, and nothing in the others, which have to call it.

    Only that one array is put together at a time.
    """
    whole = array
    if not array.is_fully_addressable:
        sharding: Any = array.sharding
        whole = jax.device_put(array, replicated(sharding.mesh)).addressable_data(0)
    return np.array(whole, copy=True) if processes.index() == process else None


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that lie there already or that every process has whole, where the shardings say."""

    def place_one(array: Any, sharding: NamedSharding) -> jax.Array:
        if getattr(array, "sharding", None) == sharding:
            return array
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place_one, tree, shardings)
