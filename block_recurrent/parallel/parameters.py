"""The table of parameters: which mesh axes shard which axes of each of them.

Kernels are [in, out]. Kernels into heads or hidden units have `fsdp` along their input and `tensor`
along their output. Kernels back to the model's size have them the other way round. Small parameters
are replicated. Paths are those of `named_parameters`, such as "stack.parts.0.layers.keys.kernel".
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

# End of a path -> the mesh axes along the parameter's last axes. The last match counts.
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

    Leading axes that the table does not have, such as that of stacked layers, are not sharded.

    Raises:
      KeyError: the table has no such parameter.
    """
    axes = table_axes(name)
    return (None,) * (len(shape) - len(axes)) + axes


def describe_sharding(mesh: Mapping[str, int], named: Mapping[str, Any]) -> dict[str, str]:
    """Which parameters are sharded along which axes, as text.

    Args:
      mesh: the number of devices along each mesh axis.
      named: the parameters, by path.

    Returns:
      Mesh axes, such as "fsdp, -" -> the ends of the paths of the parameters that are sharded so;
      the replicated ones last. Empty if all are replicated.
    """
    found: dict[str, dict[str, None]] = {}
    replicated: dict[str, None] = {}
    for name in named:
        axes = [axis if axis and mesh[axis] > 1 else "-" for axis in table_axes(name)]
        row = replicated if set(axes) == {"-"} else found.setdefault(", ".join(axes), {})
        row[".".join(name.split(".")[-2:])] = None
    rows = found | {"replicated": replicated} if found else {}
    return {axes: ", ".join(names) for axes, names in rows.items()}


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
    """The sharding of an optimizer's state: each moment is sharded as its parameter.

    Adafactor's factored moments lack one axis of their parameter.
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
    """The mesh axes of a moment of a shape, whose parameter has the shape `of`."""
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
