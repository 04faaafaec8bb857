"""What callers pass in, checked once: at the public call that receives it.

A public call is decorated with the check of its arguments, `@checked(check_...)`. What it calls in
turn receives what has been checked, and is not checked again. Every error is a sentence that names
the argument, what it is, and what is needed.
"""

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.config import LayerConfig, ModelConfig
from block_recurrent.model import state as states

P = ParamSpec("P")
T = TypeVar("T")
Shape = tuple[int | None, ...]

_has_been_checked: ContextVar[bool] = ContextVar("has_been_checked", default=False)


def checked(check: Callable[..., None]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a public call check its arguments, unless a public call that did so has made it.

    Args:
      check: takes the arguments of the call; raises TypeError or ValueError.
    """

    def decorate(call: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(call)
        def checking_call(*args: P.args, **kwargs: P.kwargs) -> T:
            if _has_been_checked.get():
                return call(*args, **kwargs)
            check(*args, **kwargs)
            token = _has_been_checked.set(True)
            try:
                return call(*args, **kwargs)
            finally:
                _has_been_checked.reset(token)

        return checking_call

    return decorate


# Single values and arrays.


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


def check_array(name: str, array: Any, shape: Shape, dtype: str | None = None) -> None:
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


def check_floats(name: str, array: Any) -> None:
    """Raises TypeError unless `array` is one of floats."""
    _check_is_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be an array of floats, not of {array.dtype}")


def _check_vectors(name: str, array: Any, size: int) -> None:
    check_floats(name, array)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"{name} has shape {array.shape}, but [..., {size}] is needed")


def _check_is_array(name: str, array: Any) -> None:
    if not hasattr(array, "dtype") or not hasattr(array, "ndim"):
        raise TypeError(f"{name} must be an array, not {type(array).__name__}")


def _check_config(config: Any, kind: type) -> None:
    if not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, not {config!r}")


def _check_keys_values(name: str, pair: Any, shape: Shape, dtype: str | None = None) -> None:
    if not isinstance(pair, states.KeysValues):
        raise TypeError(f"{name} must be a KeysValues, not {type(pair).__name__}")
    check_array(f"keys of {name}", pair.keys, shape, dtype)
    check_array(f"values of {name}", pair.values, pair.keys.shape, dtype)


# Norms, positions and gates.


def check_norm(norm: Any, size: Any) -> None:
    """Of building an RMSNorm."""
    check_size("size", size)


def check_norm_call(norm: Any, x: Any) -> None:
    """Of calling an RMSNorm."""
    _check_vectors("x", x, norm.scale.shape[-1])


def check_positions(positions: Any, num_heads: Any, **rngs: Any) -> None:
    """Of building a position scheme; that with parameters has `rngs`."""
    check_size("num_heads", num_heads)
    if rngs:
        check_rngs(rngs["rngs"])


def check_window(positions: Any, window: Any) -> None:
    """Of the method `bias` of a position scheme."""
    check_size("window", window)


def check_rotate(positions: Any, x: Any, places: Any, rolled_by: Any = None) -> None:
    """Of the method `rotate` of Rotary; `places` are its argument `positions`."""
    if rolled_by is not None:
        check_array("rolled_by", rolled_by, ())
    check_floats("x", x)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"x has shape {x.shape}, but [..., T, H, an even D] is needed")
    check_array("positions", places, (x.shape[-3],))


def check_gate(gate: Any, input_size: Any, model_size: Any, *, rngs: Any, **options: Any) -> None:
    """Of building a gate, whose one option is `activation`."""
    check_size("input_size", input_size)
    check_size("model_size", model_size)
    for name, function in options.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {function!r}")
    check_rngs(rngs)


def check_gate_call(gate: Any, states: Any, inputs: Any) -> None:
    """Of calling a gate."""
    input_size, model_size = gate.output.kernel.shape
    _check_vectors("states", states, model_size)
    _check_vectors("inputs", inputs, input_size)
    if states.shape[:-1] != inputs.shape[:-1]:
        raise ValueError(
            f"inputs has shape {inputs.shape} and states {states.shape}: all axes but the last "
            "must be equal"
        )


# Layers.


def check_layer(layer: Any, config: Any, *, unroll: Any = 1, rngs: Any, **options: Any) -> None:
    """Of building a layer or a cell."""
    _check_config(config, LayerConfig)
    check_size("unroll", unroll)
    check_rngs(rngs)


def check_initial_state(module: Any, batch_size: Any) -> None:
    """Of the method `initial_state` of layers and models."""
    check_size("batch_size", batch_size)


def check_sliding_window_call(
    layer: Any, x: Any, cache: Any, state_context: Any = None, *, dropout_key: Any = None
) -> None:
    """Of calling a SlidingWindowLayer."""
    config = layer.config
    _check_segment(config, x)
    _check_cache(config, cache, x.shape[0])
    if (state_context is None) == layer.attends_to_states:
        raise ValueError("state_context must be given exactly when the layer attends to states")
    if state_context is not None:
        blocks = x.shape[1] // config.window
        shape = (x.shape[0], blocks, None, config.num_heads, config.head_size)
        _check_keys_values("state_context", state_context, shape)
    check_key("dropout_key", dropout_key)


def check_recurrent_call(layer: Any, x: Any, state: Any, *, dropout_key: Any = None) -> None:
    """Of calling a BlockRecurrentLayer."""
    if not isinstance(state, states.LayerState):
        raise TypeError(f"state must be a LayerState, not {type(state).__name__}")
    _check_segment(layer.config, x)
    _check_cache(layer.config, state.cache, x.shape[0])
    _check_states(layer.config, state.recurrent, x.shape[0])
    check_key("dropout_key", dropout_key)


def check_cell_call(cell: Any, x: Any, state: Any, *, dropout_key: Any = None) -> None:
    """Of calling a RecurrentCell, and of its method `vertical`."""
    check_recurrent_call(cell, x, state, dropout_key=dropout_key)
    if x.shape[1] != cell.config.window:
        raise ValueError(
            f"a cell reads one block of {cell.config.window} tokens, not {x.shape[1]}; "
            "BlockRecurrentLayer reads whole segments"
        )


def check_project(cell: Any, states: Any) -> None:
    """Of the method `project` of a RecurrentCell."""
    _check_states(cell.config, states)


def check_horizontal(cell: Any, states: Any, token_context: Any) -> None:
    """Of the method `horizontal` of a RecurrentCell."""
    config = cell.config
    _check_states(config, states)
    shape = (states.shape[0], 2 * config.window, config.num_heads, config.head_size)
    _check_keys_values("token_context", token_context, shape)


def _check_segment(config: LayerConfig, x: Any) -> None:
    check_floats("x", x)
    check_array("x", x, (None, None, config.model_size))
    _check_length(x.shape[1], config.window)


def _check_length(length: int, window: int) -> None:
    if length == 0 or length % window:
        raise ValueError(f"a segment of {length} tokens is no multiple of the window {window}")


def _check_cache(config: LayerConfig, cache: Any, batch: int) -> None:
    shape = (batch, config.window, config.num_heads, config.head_size)
    _check_keys_values("the cache", cache, shape, config.dtype)


def _check_states(config: LayerConfig, states: Any, batch: int | None = None) -> None:
    shape = (batch, config.num_states, config.model_size)
    check_array("the recurrent state", states, shape, "float32")


# States of layers and models.


def check_reset(state: Any, initial: Any, start: Any, *, batch_axis: int = 0) -> None:
    """Of `reset`."""
    check_array("start", start, (None,), "bool")
    if jax.tree.structure(initial) != jax.tree.structure(state):
        raise TypeError(f"initial must be a {type(state).__name__} as state is, not {initial!r}")
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(initial), strict=True)
    for array, new in leaves:
        if not 0 <= batch_axis < array.ndim or array.shape[batch_axis] != len(start):
            raise ValueError(
                f"start has {len(start)} rows, but in the state, whose rows lie along batch_axis = "
                f"{batch_axis}, is an array of shape {array.shape}"
            )
        check_array("an array of initial", new, array.shape)


def check_model_state(config: ModelConfig, state: Any, batch: int) -> None:
    """Raises unless the state is one of `batch` rows and of this configuration."""
    if not isinstance(state, states.ModelState):
        raise TypeError(f"state must be a ModelState, not {type(state).__name__}")
    shape = (config.num_layers, batch, config.window, config.num_heads, config.head_size)
    _check_keys_values("the state's cache", state.cache, shape, config.dtype)
    shape = (len(config.recurrent_layers), batch, config.num_states, config.model_size)
    check_array("the recurrent state", state.recurrent, shape, "float32")


# The language model, and generation.


def check_model(model: Any, config: Any, *, rngs: Any) -> None:
    """Of building a LanguageModel."""
    _check_config(config, ModelConfig)
    check_rngs(rngs)


def check_model_call(
    model: Any, tokens: Any, state: Any, *, start_of_document: Any = None, dropout_key: Any = None
) -> None:
    """Of calling a LanguageModel, and of its method `features`.

    Token ids are not looked at: inside a compiled program they are unknown.
    """
    _check_tokens(tokens)
    _check_length(tokens.shape[1], model.config.window)
    check_model_state(model.config, state, tokens.shape[0])
    _check_options(tokens, start_of_document, dropout_key)


def _check_tokens(tokens: Any) -> None:
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
        found = getattr(tokens, "dtype", type(tokens).__name__)
        raise TypeError(f"tokens must be an integer array, not {found}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [batch, segment], but have shape {tokens.shape}")
    check_size("batch_size", tokens.shape[0])


def _check_options(tokens: Any, start_of_document: Any, dropout_key: Any) -> None:
    if start_of_document is not None:
        if getattr(start_of_document, "dtype", None) != jnp.bool_:
            raise TypeError(f"start_of_document must be a bool array, not {start_of_document!r}")
        check_array("start_of_document", start_of_document, (tokens.shape[0],))
    check_key("dropout_key", dropout_key)


def check_baseline(kind: type) -> Callable[..., None]:
    """The check of building a baseline from a configuration of this kind."""

    def check(model: Any, config: Any, *, rngs: Any) -> None:
        _check_config(config, kind)
        check_rngs(rngs)

    return check


def check_baseline_call(
    model: Any, tokens: Any, state: Any, *, start_of_document: Any = None, dropout_key: Any = None
) -> None:
    """Of calling a baseline, and of its method `features`; the model looks at its state itself."""
    _check_tokens(tokens)
    check_size("the length of a segment", tokens.shape[1])
    model.check_state(state, tokens.shape[0])
    _check_options(tokens, start_of_document, dropout_key)


def check_flat_state(state: Any, like: Any) -> None:
    """Raises unless a state is a NamedTuple of arrays like those of another."""
    if type(state) is not type(like):
        raise TypeError(f"state must be a {type(like).__name__}, not {type(state).__name__}")
    for name, array, wanted in zip(like._fields, state, like, strict=True):
        check_array(f"the state's {name}", array, wanted.shape, str(wanted.dtype))


def check_token_ids(name: str, tokens: ArrayLike, vocab_size: int) -> Array:
    """Tokens as an int32 array [B, P]; raises unless they are integers in [0, V) and P >= 1."""
    try:
        values = np.asarray(tokens)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of one length: {error}") from error
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{name} must be integers, not {values.dtype}")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"{name} must be [B, P] with P of at least 1, but has shape {values.shape}"
        )
    outside = values[(values < 0) | (values >= vocab_size)]
    if outside.size:
        raise ValueError(f"{name}: token id {outside[0]} is outside the vocabulary of {vocab_size}")
    return jnp.asarray(values, jnp.int32)


def check_point(config: ModelConfig, point: Any, batch: int) -> None:
    """Raises unless a GenerationState is one of `batch` rows and of this configuration."""
    check_model_state(config, point.block_start, batch)
    check_array("tokens of the state", point.tokens, (batch, config.window), "int32")
    if point.length not in range(config.window):
        raise ValueError(
            f"length of the state must be from 0 to {config.window - 1}, not {point.length!r}"
        )


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    """Raises TypeError or ValueError for an argument of `generate` that is out of range."""
    check_size("max_new_tokens", max_new_tokens)
    check_size("top_k", 1 if top_k is None else top_k)
    numbers = {"temperature": temperature, "top_p": 1 if top_p is None else top_p, "seed": seed}
    for name, value in numbers.items():
        kinds = (int, np.integer) if name == "seed" else (int, float, np.number)
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, not {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, not {seed}")
