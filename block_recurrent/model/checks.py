"""Checks of what users pass in.

Every error names the argument, says what it is, and says what is needed. `TypeError` means another
kind of value, `ValueError` a value, shape or dtype that does not fit.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from block_recurrent.config import LayerConfig


def check_size(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_config(config: Any, kind: type, rngs: Any) -> None:
    """Raises TypeError unless these are a `kind` of configuration and an `nnx.Rngs`."""
    if not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, not {config!r}")
    check_rngs(rngs)


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


def check_array(name: str, array: Any, shape: str, kind: type | None = None) -> None:
    """Raises unless `array` has the shape and is of the kind.

    Args:
      name: of the argument.
      array: what the user passed in.
      shape: such as "B N 12": a letter fits any size, and "..." in front fits any leading axes.
      kind: of the values, such as `np.floating`; None for any.
    """
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise TypeError(f"{name} must be an array, not {type(array).__name__}")
    wanted, found = shape.split(), tuple(array.shape)
    if wanted[:1] == ["..."]:
        number = len(wanted) - 1
        fits, found = len(found) >= number, found[len(found) - number :]
        wanted = wanted[1:]
    else:
        fits = len(found) == len(wanted)
    if not fits or any(
        size.isdigit() and int(size) != actual for size, actual in zip(wanted, found, strict=True)
    ):
        needed = ", ".join(shape.split())
        raise ValueError(f"{name} has shape {array.shape}, but [{needed}] is needed")
    if kind is not None and not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name} must hold {kind.__name__} values, not {array.dtype}")


def check_keys_values(name: str, pair: Any, shape: str) -> None:
    """Raises unless `pair` holds keys and values of one shape that fits."""
    check_array(f"{name}.keys", getattr(pair, "keys", None), shape)
    exact = " ".join(map(str, pair.keys.shape))
    check_array(f"{name}.values", getattr(pair, "values", None), exact)


def check_like(name: str, value: Any, like: Any) -> None:
    """Raises unless `value` is the same kind of tuple as `like`, of the same shapes and dtypes."""
    if type(value) is not type(like):
        raise TypeError(f"{name} must be a {type(like).__name__}, not {type(value).__name__}")
    for field, part, wanted in zip(like._fields, value, like, strict=True):
        if isinstance(wanted, tuple):
            check_like(f"{name}.{field}", part, wanted)
            continue
        check_array(f"{name}.{field}", part, " ".join(map(str, wanted.shape)))
        if part.dtype != wanted.dtype:
            raise ValueError(f"{name}.{field} has dtype {part.dtype}, but {wanted.dtype} is needed")


def check_state(module: Any, state: Any, batch_size: int, name: str = "state") -> None:
    """Raises unless `state` is like the initial state of `module` for so many rows."""
    check_like(name, state, jax.eval_shape(functools.partial(module.initial_state, batch_size)))


def check_length(length: int, window: int) -> None:
    """Raises ValueError unless a segment is one window or several."""
    if length == 0 or length % window:
        raise ValueError(f"a segment of {length} tokens is no multiple of the window {window}")


def check_layer_call(layer: Any, x: Any, state: Any, dropout_key: Any, name: str = "state") -> None:
    """Raises unless a layer can read `x` from `state`, which the layer's call names `name`."""
    config: LayerConfig = layer.config
    check_array("x", x, f"B N {config.model_size}", np.floating)
    check_length(x.shape[1], config.window)
    check_state(layer, state, x.shape[0], name)
    check_key("dropout_key", dropout_key)


def check_model_call(
    tokens: Any, start_of_document: Any, dropout_key: Any, lengths: Any, vocab_size: int
) -> None:
    """Raises unless these are arguments of a model's call.

    Within a compiled program token ids and lengths are not looked at, because it does not know
    them.
    """
    check_array("tokens", tokens, "B N", np.integer)
    known = not isinstance(tokens, Tracer)
    if known and getattr(tokens, "is_fully_addressable", True):
        _check_inside("tokens", np.asarray(tokens), vocab_size)
    for name, size in zip(("the batch size", "the length of a segment"), tokens.shape, strict=True):
        check_size(name, size)
    if start_of_document is not None:
        check_array("start_of_document", start_of_document, str(tokens.shape[0]), np.bool_)
    check_key("dropout_key", dropout_key)
    if lengths is not None:
        check_lengths(lengths, tokens.shape)


def check_lengths(lengths: Any, shape: tuple[int, ...], shortest: int = 0, unit: int = 1) -> None:
    """Raises unless these are lengths of the rows of tokens, [B, N], in multiples of `unit`."""
    check_array("lengths", lengths, str(shape[0]), np.integer)
    if isinstance(lengths, Tracer):
        return
    values = np.asarray(lengths)
    for length in values[(values < shortest) | (values > shape[1])]:
        raise ValueError(f"lengths must be from {shortest} to {shape[1]}, not {length}")
    for length in values[values % unit != 0]:
        raise ValueError(
            f"lengths: {length} is no multiple of the window {unit}, after which the state "
            "advances; `prefill` reads rows of any length"
        )


def check_token_ids(name: str, tokens: ArrayLike, vocab_size: int) -> Array:
    """Tokens as an int32 array [B, P]; raises unless they are integers in [0, V) and P >= 1."""
    try:
        values = np.asarray(tokens)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of one length: {error}") from error
    check_array(name, values, "B P", np.integer)
    if values.size == 0:
        raise ValueError(f"{name} must have at least one token, but has shape {values.shape}")
    _check_inside(name, values, vocab_size)
    return jnp.asarray(values, jnp.int32)


def _check_inside(name: str, values: np.ndarray, vocab_size: int) -> None:
    outside = values[(values < 0) | (values >= vocab_size)]
    if outside.size:
        raise ValueError(f"{name}: token id {outside[0]} is outside the vocabulary of {vocab_size}")


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int,
) -> None:
    """Raises TypeError or ValueError for an argument of `generate` that is out of range."""
    check_size("max_new_tokens", max_new_tokens)
    check_size("top_k", 1 if top_k is None else top_k)
    shares = {"top_p": 1 if top_p is None else top_p, "min_p": 1 if min_p is None else min_p}
    for name, value in {"temperature": temperature, **shares, "seed": seed}.items():
        kinds = (int, np.integer) if name == "seed" else (int, float, np.number)
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, not {temperature}")
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, not {seed}")
