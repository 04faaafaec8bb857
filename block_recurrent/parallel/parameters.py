"""The table of parameters: along which axes of the mesh each of them is shared out.

Kernels are [in, out]. Those that lead into heads or hidden units have `fsdp` along their input and
`tensor` along their output; those that lead back the other way round. What is as small as a scale
is whole everywhere.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from block_recurrent.gin_files import ConfigError
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.parallel.axes import FSDP, TENSOR, AnyMesh

Axes = tuple[str | None, ...]

# How a path ends -> the axes of the mesh along the axes of the parameter, stacked layers left out;
# where several endings fit, the last one counts.
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
WHOLE = "whole"
_RULES = [(re.compile(rf"(.*\.)?{ending}"), axes) for ending, axes in TABLE.items()]


def parameter_axes(name: str, model: Any) -> Axes:
    """The axes of the mesh along the axes of the parameter of `model` at a path.

    Raises:
      KeyError: the table has no such parameter.
    """
    for pattern, axes in reversed(_RULES):
        if pattern.fullmatch(name):
            return (None, *axes) if is_stacked(name, model) else axes
    raise KeyError(f"{name} is not in the table of parameters")


def is_stacked(name: str, model: Any) -> bool:
    """Whether the parameter of `model` at a path has a leading axis of layers."""
    stacked = getattr(model, "stacked_layers", ())
    return any(name.startswith(f"{path}.") for path in stacked)


def shared_parameters(mesh: Mapping[str, int], model: Any) -> dict[str, str]:
    """Which parameters lie along which axes, for people.

    Args:
      mesh: how many devices there are along each axis.
      model: a model, or its shapes.

    Returns:
      The ends of their paths, by where each of their axes lies ("-": on every device); empty if all
      are whole.
    """
    found: dict[str, list[str]] = {}
    for name in named_parameters(model):
        axes = parameter_axes(name, model)[is_stacked(name, model) :]
        shared = [axis if axis and mesh[axis] > 1 else "-" for axis in axes]
        where = WHOLE if set(shared) == {"-"} else ", ".join(shared)
        ending = ".".join(name.split(".")[-2:])
        if ending not in found.setdefault(where, []):
            found[where].append(ending)
    whole = found.pop(WHOLE, [])
    rows = found | {WHOLE: whole} if found else {}
    return {where: ", ".join(names) for where, names in rows.items()}


def model_sharding(mesh: AnyMesh, model: Any) -> Any:
    """Where the parameters of a model, or of its shapes, lie.

    Raises:
      ConfigError: parameters cannot be shared out evenly; all of them are named.
    """
    named = named_parameters(model)
    places = {name: PartitionSpec(*parameter_axes(name, model)) for name in named}
    problems = [
        f"{name} {list(array.shape)}: {size} is no multiple of mesh.{axis} = {mesh.shape[axis]}"
        for name, array in named.items()
        for size, axis in zip(array.shape, places[name], strict=True)
        if axis is not None and size % mesh.shape[axis]
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigError(
            f"the model cannot be shared out as mesh.fsdp and mesh.tensor say:\n  {listed}"
        )
    shardings = {name: NamedSharding(mesh, place) for name, place in places.items()}
    return replace_parameters(model, cast(Any, shardings))


def optimizer_sharding(mesh: AnyMesh, optimizer: Any, model: Any) -> Any:
    """Where the optimizer's state lies: beside the parameters that it belongs to.

    Adafactor's factored moments have one axis less than their parameter and lie along the others.
    """
    shapes = {name: array.shape for name, array in named_parameters(model).items()}

    def place(path: tuple[Any, ...], array: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None)
        axes: Axes = ()
        if name in shapes:
            of = parameter_axes(name, model)
            axes = _moment_axes(array.shape, shapes[name], of, _kind(path))
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map_with_path(place, optimizer)


def _kind(path: tuple[Any, ...]) -> str:
    """What the optimizer calls a moment."""
    return getattr(path[-2], "name", "")


def _moment_axes(shape: tuple[int, ...], of: tuple[int, ...], axes: Axes, kind: str) -> Axes:
    """The axes of a moment of this shape, whose parameter has the shape `of` and these axes."""
    if shape == of:
        return axes
    if len(shape) == len(of) - 1 and kind in ("v_row", "v_col"):
        first = len(of) - 2  # stacked layers are factored one by one
        smaller, larger = first + np.argsort(of[first:], kind="stable")
        left_out = int(larger if kind == "v_row" else smaller)
        if shape == of[:left_out] + of[left_out + 1 :]:
            return axes[:left_out] + axes[left_out + 1 :]
    return ()
