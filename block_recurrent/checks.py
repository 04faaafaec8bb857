"""Checks of what a caller passes in; each error is a sentence that names the argument."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.attention import KeysValues
from block_recurrent.config import LayerConfig, ModelConfig
from block_recurrent.state import ModelState


def check_shape(name: str, array: Array | np.ndarray, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless `array` has the shape `expected`."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, but {expected} is needed")


def check_segment(length: int, window: int) -> None:
    """Raises ValueError unless a segment of `length` tokens is one or more whole windows."""
    if length == 0 or length % window:
        raise ValueError(f"a segment of {length} tokens is no multiple of the window {window}")


def check_tokens(tokens: Array | np.ndarray, window: int) -> None:
    """Raises unless `tokens` are integers [B, N] with N a multiple of the window.

    Token ids are not looked at: inside a compiled program they are unknown.
    """
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be an integer array, not {getattr(tokens, 'dtype', tokens)}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [batch, segment], but have shape {tokens.shape}")
    check_segment(tokens.shape[1], window)


def check_token_ids(tokens: ArrayLike, vocab_size: int) -> Array:
    """Tokens as an int32 array [B, P]; raises unless they are integers in [0, V) and P >= 1."""
    values = np.asarray(tokens)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"tokens must be integers, not {values.dtype}")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"tokens must be [batch, at least one], but have shape {values.shape}")
    outside = values[(values < 0) | (values >= vocab_size)]
    if outside.size:
        raise ValueError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")
    return jnp.asarray(values, jnp.int32)


def check_model_input(
    config: ModelConfig,
    tokens: Array | np.ndarray,
    state: ModelState,
    start_of_document: Array | np.ndarray | None,
) -> None:
    """Raises unless tokens, state and `start_of_document` fit one another and the configuration."""
    check_tokens(tokens, config.window)
    if not isinstance(state, ModelState):
        raise TypeError(f"state must be a ModelState, not {type(state).__name__}")
    batch = tokens.shape[0]
    check_model_state(config, state, batch)
    if start_of_document is not None:
        check_shape("start_of_document", start_of_document, (batch,))
        if start_of_document.dtype != jnp.bool_:
            raise TypeError(f"start_of_document must be bool, not {start_of_document.dtype}")


def check_model_state(config: ModelConfig, state: ModelState, batch: int) -> None:
    """Raises ValueError unless the state is one of `batch` rows and of this configuration."""
    shape = (config.num_layers, batch, config.window, config.num_heads, config.head_size)
    check_cache(shape, state.cache)
    recurrent = len(config.recurrent_layers)
    shape = (recurrent, batch, config.num_states, config.model_size)
    check_shape("the recurrent state", state.recurrent, shape)


def check_layer_input(
    config: LayerConfig, x: Array, cache: KeysValues, recurrent: Array | None = None
) -> None:
    """Raises ValueError unless `x` [B, N, E] and the carried arrays fit the configuration."""
    if x.ndim != 3 or x.shape[2] != config.model_size:
        expected = f"[batch, segment, {config.model_size}]"
        raise ValueError(f"x has shape {x.shape}, but {expected} is needed")
    check_segment(x.shape[1], config.window)
    check_cache((x.shape[0], config.window, config.num_heads, config.head_size), cache)
    if recurrent is not None:
        shape = (x.shape[0], config.num_states, config.model_size)
        check_shape("the recurrent state", recurrent, shape)


def check_cache(shape: tuple[int, ...], cache: KeysValues) -> None:
    """Raises ValueError unless keys and values have the given shape."""
    check_shape("the carried keys", cache.keys, shape)
    check_shape("the carried values", cache.values, shape)
