"""A module's parameters by paths such as "stack.parts.0.layers.keys.kernel"."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax import Array

M = TypeVar("M")


def _name(path: tuple) -> str:
    parts = [
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path
    ]
    return ".".join(part for part in parts if part != "value")


def named_parameters(module: Any) -> dict[str, Array]:
    """Every array of `module`, or of gradients in its structure, by its path."""
    leaves, _ = jax.tree.flatten_with_path(module)
    return {_name(path): leaf for path, leaf in leaves}


def replace_parameters(module: M, named: Mapping[str, Array]) -> M:
    """A copy of `module` with the arrays `named`; every path must be there."""
    return jax.tree.map_with_path(lambda path, _: named[_name(path)], module)


def count_parameters(module: Any, *, embedding: bool = True) -> int:
    """How many numbers `module` learns, with or without those of the token embedding."""
    named = named_parameters(module)
    return sum(array.size for name, array in named.items() if embedding or name != "embedding")
