"""Models whose parameters come from elsewhere: made without, and given only what they need."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

M = TypeVar("M")


def with_zeros(build: Callable[[nnx.Rngs], M]) -> M:
    """Returns the model that `build` makes, with zeros for parameters; nothing is compiled."""
    shapes = jax.eval_shape(lambda: build(nnx.Rngs(0)))
    return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), shapes)


def check_names(parameters: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises unless `parameters` has the names of `shapes` and no others, in these shapes.

    Raises:
      TypeError: no mapping.
      ValueError: names that are missing or unknown, or arrays of the wrong shape or kind, all
        listed.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters must be a mapping, not {type(parameters).__name__}")
    problems = [f"missing: {name} {shapes[name]}" for name in shapes if name not in parameters]
    for name, value in parameters.items():
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            array = np.empty((), object)
        dtype, shape = array.dtype, array.shape
        if name not in shapes:
            problems.append(f"unknown: {name} {shape}")
        elif not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            problems.append(f"no real numbers: {name} is of {dtype}")
        elif shape != shapes[name]:
            problems.append(f"misshapen: {name} is {shape}, but {shapes[name]} is needed")
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"the parameters do not fit the configuration:\n  {listed}")
