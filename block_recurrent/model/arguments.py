"""Checks of single arguments; each error is a sentence that names the argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array


def check_size(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_rngs(rngs: Any) -> None:
    """Raises TypeError unless `rngs` is an `nnx.Rngs`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be an nnx.Rngs, not {rngs!r}")


def check_key(name: str, key: Any) -> None:
    """Raises TypeError unless `key` is None or one key of `jax.random`, of the new or old kind."""
    if key is None:
        return
    if isinstance(key, Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return
    raise TypeError(f"{name} must be one key, as of jax.random.key, not {key!r}")


def check_array(
    name: str,
    array: Array | np.ndarray,
    shape: tuple[int | None, ...],
    dtype: str | None = None,
) -> None:
    """Raises unless `array` is one that has the shape, None fitting any size, and the dtype."""
    _check_is_array(name, array)
    fits = array.ndim == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        needed = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, but [{needed}] is needed")
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"{name} has dtype {array.dtype}, but {dtype} is needed")


def check_vectors(name: str, array: Array | np.ndarray, size: int) -> None:
    """Raises unless `array` is one of floats, [..., size]."""
    check_floats(name, array)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"{name} has shape {array.shape}, but [..., {size}] is needed")


def check_floats(name: str, array: Array | np.ndarray) -> None:
    """Raises TypeError unless `array` is one of floats."""
    _check_is_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be an array of floats, not of {array.dtype}")


def _check_is_array(name: str, array: Any) -> None:
    if not hasattr(array, "dtype") or not hasattr(array, "ndim"):
        raise TypeError(f"{name} must be an array, not {type(array).__name__}")
