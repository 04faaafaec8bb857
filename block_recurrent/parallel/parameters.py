"""The table of parameters: which mesh axes shard which axes of each of them.

Kernels are [in, out]. Kernels into heads or hidden units have `fsdp` along their input and `tensor`
along their output. Kernels back to the model's size have them the other way round. Small parameters
are replicated.

Parameters come as a dictionary from their path, such as "stack.parts.0.layers.keys.kernel", to an
array or its shape.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from block_recurrent.config import ConfigError
from block_recurrent.parallel.axes import FSDP, TENSOR, AnyMesh

Axes = tuple[str | None, ...]
Shape = tuple[int, ...]

# How a path ends -> the mesh axes along the parameter's last axes. If several fit, the last counts.
TABLE: Mapping[str, Axes] = {
    r"embedding": (TENSOR, FSDP),
    # into heads and hidden units
    r"(keys|values|queries|state_queries|token_queries|distances)\.kernel": (FSDP, TENSOR),
    r"(mlp_hidden|wiring\.hidden)\.kernel": (FSDP, TENSOR),
    # back to the model's size
    r"(output|mlp_output|forget|input)\.kernel": (TENSOR, FSDP),
    # of each head
    r"(scale|state_scale|token_scale)": (TENSOR,),
    r"positions\.table": (TENSOR, None),
    r"(content_bias|position_bias)": (TENSOR, None),
    # states
    r"cell\.(ids|initial)": (None, FSDP),
    # LSTM of the baselines
    r"(cell\.dense_h|cell\.dense_i|projection)\.kernel": (FSDP, None),
    # norms and biases
    r"(norm|mlp_norm)\.scale": (None,),
    r"(bias|forget_bias|input_bias|output_bias)": (None,),
    r"mlp_hidden\.bias": (TENSOR,),
}
REPLICATED = "replicated"
_RULES = [(re.compile(rf"(.*\.)?{ending}"), axes) for ending, axes in TABLE.items()]


def table_axes(name: str) -> Axes:
    """The mesh axes along the last axes of the parameter at a path.

    Raises:
      KeyError: the table has no such parameter.
    """
    for pattern, axes in reversed(_RULES):
        if pattern.fullmatch(name):
            return axes
    raise KeyError(f"{name} is not in the table of parameters")


def parameter_axes(name: str, shape: Shape) -> Axes:
    """The mesh axes along all axes of the parameter at a path; None where it is not sharded.

    Axes in front of the table's, such as that of stacked layers, are not sharded.

    Raises:
      KeyError: the table has no such parameter.
    """
    axes = table_axes(name)
    return (None,) * (len(shape) - len(axes)) + axes


def describe_sharding(mesh: Mapping[str, int], named: Mapping[str, Any]) -> dict[str, str]:
    """Which parameters are sharded along which axes, for people.

    Args:
      mesh: how many devices there are along each mesh axis.
      named: the parameters.

    Returns:
      The ends of their paths, by the mesh axis along each of their axes ("-": none); empty if all
      are replicated.
    """
    found: dict[str, list[str]] = {}
    for name in named:
        sharded = [axis if axis and mesh[axis] > 1 else "-" for axis in table_axes(name)]
        where = REPLICATED if set(sharded) == {"-"} else ", ".join(sharded)
        ending = ".".join(name.split(".")[-2:])
        if ending not in found.setdefault(where, []):
            found[where].append(ending)
    replicated = found.pop(REPLICATED, [])
    rows = found | {REPLICATED: replicated} if found else {}
    return {where: ", ".join(names) for where, names in rows.items()}


def parameter_shardings(mesh: AnyMesh, named: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """The sharding of every parameter.

    Raises:
      ConfigError: the mesh axes do not divide the sizes of some parameters; all are named.
    """
    specs = {name: parameter_axes(name, array.shape) for name, array in named.items()}
    problems = [
        f"{name} {list(array.shape)}: {size} is no multiple of mesh.{axis} = {mesh.shape[axis]}"
        for name, array in named.items()
        for size, axis in zip(array.shape, specs[name], strict=True)
        if axis is not None and size % mesh.shape[axis]
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigError(f"mesh.fsdp and mesh.tensor do not divide the model evenly:\n  {listed}")
    return {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in specs.items()}


def optimizer_sharding(mesh: AnyMesh, optimizer: Any, named: Mapping[str, Any]) -> Any:
    """The sharding of an optimizer's state: that of the parameters that its arrays belong to.

    Adafactor's factored moments have one axis less than their parameter and the mesh axes of the
    others.
    """

    def sharding(path: tuple[Any, ...], array: Any) -> NamedSharding:
        name = getattr(path[-1], "key", "")
        axes: Axes = ()
        if name in named:
            moment = getattr(path[-2], "name", "")
            axes = _moment_axes(moment, array.shape, named[name].shape, name)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map_with_path(sharding, optimizer)


def _moment_axes(moment: str, shape: Shape, of: Shape, name: str) -> Axes:
    """The mesh axes of a moment of this shape, whose parameter has the shape `of`."""
    axes = parameter_axes(name, of)
    if shape == of:
        return axes
    if moment in ("v_row", "v_col") and len(of) >= 2:
        # Adafactor factors the last two axes: stacked layers are factored one by one.
        smaller, larger = len(of) - 2 + np.argsort(of[-2:], kind="stable")
        left_out = int(larger if moment == "v_row" else smaller)
        if shape == of[:left_out] + of[left_out + 1 :]:
            return axes[:left_out] + axes[left_out + 1 :]
    return ()
