"""Attention for TPUs: fused kernels, the bias and its gradient included."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from block_recurrent.parallel.axes import lane_axes

LANES = 128  # of a TPU's vectors: sizes of tiles are multiples of it
LEAST_MEMORY = 16 * 2**20  # of a kernel, in bytes: what the compiler gives anyway


def on_every_device(function: Callable) -> Callable:
    """`function(settings, arrays, ...)`, where every device takes the windows of its own lanes.

    What has two axes belongs to no lane: it is whole everywhere, and what comes out is summed over
    devices. The first axis of all else is that of lanes or windows. On one device it is `function`
    itself.
    """

    @functools.wraps(function)
    def shared_out(settings: Any, *arrays: Any) -> Any:
        mesh, axes = lane_axes(jax.tree.leaves(arrays)[0])
        if mesh.size <= 1 or mesh.manual_axes:
            return function(settings, *arrays)

        def own_windows(*arrays: Any) -> Any:
            out = function(settings, *arrays)
            return jax.tree.map(lambda x: jax.lax.psum(x, axes) if _is_whole(x) else x, out)

        def place(x: Any) -> PartitionSpec:
            return PartitionSpec() if _is_whole(x) else PartitionSpec(axes)

        out = jax.eval_shape(functools.partial(function, settings), *arrays)
        return jax.shard_map(
            own_windows,
            mesh=mesh,
            in_specs=jax.tree.map(place, arrays),
            out_specs=jax.tree.map(place, out),
            check_vma=False,
        )(*arrays)

    return shared_out


def _is_whole(x: Any) -> bool:
    return len(x.shape) == 2
