"""Checks of what a caller passes in; each error is a sentence that names the argument."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.config import LayerConfig, ModelConfig
from block_recurrent.model.arguments import check_array, check_floats, check_size
from block_recurrent.model.attention import KeysValues
from block_recurrent.model.state import LayerState, ModelState


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless `batch_size` is a whole number of at least 1."""
    check_size("batch_size", batch_size)


def check_config(config: LayerConfig, kind: type[LayerConfig]) -> None:
    """Raises TypeError unless `config` is of the class that a module is built from."""
    if not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, not {config!r}")


def check_segment(length: int, window: int) -> None:
    """Raises ValueError unless a segment of `length` tokens is one or more whole windows."""
    if length == 0 or length % window:
        raise ValueError(f"a segment of {length} tokens is no multiple of the window {window}")


def check_tokens(tokens: Array | np.ndarray, window: int) -> None:
    """Raises unless `tokens` are integers [B, N] with N a multiple of the window.

    Token ids are not looked at: inside a compiled program they are unknown.
    """
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
        found = getattr(tokens, "dtype", type(tokens).__name__)
        raise TypeError(f"tokens must be an integer array, not {found}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [batch, segment], but have shape {tokens.shape}")
    check_batch_size(tokens.shape[0])
    check_segment(tokens.shape[1], window)


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


def check_model_input(
    config: ModelConfig,
    tokens: Array | np.ndarray,
    state: ModelState,
    start_of_document: Array | np.ndarray | None,
) -> None:
    """Raises unless tokens, state and `start_of_document` fit one another and the configuration."""
    check_tokens(tokens, config.window)
    batch = tokens.shape[0]
    check_model_state(config, state, batch)
    if start_of_document is not None:
        if getattr(start_of_document, "dtype", None) != jnp.bool_:
            raise TypeError(f"start_of_document must be a bool array, not {start_of_document!r}")
        check_array("start_of_document", start_of_document, (batch,))


def check_model_state(config: ModelConfig, state: ModelState, batch: int) -> None:
    """Raises unless the state is one of `batch` rows and of this configuration."""
    if not isinstance(state, ModelState):
        raise TypeError(f"state must be a ModelState, not {type(state).__name__}")
    shape = (config.num_layers, batch, config.window, config.num_heads, config.head_size)
    check_keys_values("the state's cache", state.cache, shape, config.dtype)
    recurrent = len(config.recurrent_layers)
    shape = (recurrent, batch, config.num_states, config.model_size)
    check_array("the recurrent state", state.recurrent, shape, "float32")


def check_layer_input(config: LayerConfig, x: Array, cache: KeysValues) -> None:
    """Raises unless `x` [B, N, E] and the carried cache fit the configuration."""
    check_floats("x", x)
    check_array("x", x, (None, None, config.model_size))
    check_segment(x.shape[1], config.window)
    shape = (x.shape[0], config.window, config.num_heads, config.head_size)
    check_keys_values("the cache", cache, shape, config.dtype)


def check_layer_state(config: LayerConfig, x: Array, state: LayerState) -> None:
    """Raises unless `x` [B, N, E] and a recurrent layer's state fit the configuration."""
    if not isinstance(state, LayerState):
        raise TypeError(f"state must be a LayerState, not {type(state).__name__}")
    check_layer_input(config, x, state.cache)
    check_recurrent(config, state.recurrent, x.shape[0])


def check_recurrent(config: LayerConfig, recurrent: Array, batch: int | None = None) -> None:
    """Raises ValueError unless states are [B, S, E] float32."""
    shape = (batch, config.num_states, config.model_size)
    check_array("the recurrent state", recurrent, shape, "float32")


def check_keys_values(
    name: str, context: KeysValues, shape: tuple[int | None, ...], dtype: str | None = None
) -> None:
    """Raises unless `context` is a pair of keys and values of the given shape and dtype."""
    if not isinstance(context, KeysValues):
        raise TypeError(f"{name} must be a KeysValues, not {type(context).__name__}")
    check_array(f"keys of {name}", context.keys, shape, dtype)
    check_array(f"values of {name}", context.values, context.keys.shape, dtype)
