"""Sampling token by token, on the same parameters and the same state as training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model import block_decoding, token_decoding
from block_recurrent.model.block_decoding import GenerationState as GenerationState
from block_recurrent.model.checks import check_sampling
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.protocol import Model
from block_recurrent.model.sampling import Sampling, sample


class Decoder(NamedTuple):
    """How a kind of model reads.

    Attributes:
      read: (model, state, tokens, their name) -> logits after the last token, the point reached,
        and what else is known of it.
      start: (model, point, what else is known) -> what is carried from one token to the next.
      decode: (model, token, carried) -> logits for the next token, and what is carried on.
    """

    read: Callable[..., tuple[Array, Any, Any]]
    start: Callable[..., Any]
    decode: Callable[..., tuple[Array, Any]]


BY_BLOCKS = Decoder(block_decoding.read, block_decoding.start_decoding, block_decoding.decode_token)
BY_TOKENS = Decoder(token_decoding.read, token_decoding.start_decoding, token_decoding.decode_token)


def decoder_of(model: Model) -> Decoder:
    """The decoder of a model.

    Raises:
      TypeError: it is no language model.
    """
    if isinstance(model, LanguageModel):
        return BY_BLOCKS
    if hasattr(model, "next_length"):
        return BY_TOKENS
    raise TypeError(f"model must be a LanguageModel, not {type(model).__name__}")


def prefill(model: Model, state: Any, tokens: ArrayLike) -> tuple[Array, Any]:
    """Reads any number of tokens, block by block in parallel.

    Baselines read them in calls of several lengths, the last token in a call of its own.

    Args:
      model: the language model.
      state: a model's state at a block's end, or a point inside a block; of a baseline its state.
      tokens: [B, P] integers in [0, V), P >= 1; at a document's start the first one is the
        tokenizer's beginning-of-document token.

    Returns:
      Logits [B, V] float32 for the token after the last one, and the point reached, a
      `GenerationState` or a baseline's state.

    Raises:
      TypeError, ValueError: tokens that are no integers in range, or do not fit the state.
    """
    logits, point, _ = _read(model, state, tokens, "tokens")
    return logits, point


def generate(
    model: Model,
    state: Any,
    prompt: ArrayLike,
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    callback: Callable[[np.ndarray], None] | None = None,
) -> Array:
    """Continues a prompt, from a document's start or from any point of a document.

    To go on afterwards, `prefill` prompt and result.

    Args:
      model: the language model.
      state: `model.initial_state(B)` at a document's start, a state from reading whole blocks, or
        a point inside a block from `prefill`; of a baseline any state.
      prompt: [B, P] integers in [0, V), P >= 1, as for `prefill`.
      max_new_tokens: how many tokens to add.
      temperature: 0 always takes the most likely token.
      top_k: only among the k most likely tokens.
      top_p: only among the fewest tokens that together have this probability.
      seed: the same seed gives the same text; rows of a batch draw independently.
      callback: called with each new token of all rows, [B] int32, as soon as it is there.

    Returns:
      The new tokens, [B, max_new_tokens] int32.

    Raises:
      TypeError, ValueError: arguments that are out of range or do not fit together.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    decoder_of(model)  # raises for what is no model
    sampling = Sampling(
        jax.random.key(seed),
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(min(top_k, model.config.vocab_size)),
        None if top_p is None else jnp.float32(top_p),
    )
    logits, point, rest = _read(model, state, prompt, "prompt")
    decoding = start_decoding(model, point, rest)
    # A power of two, so that one compiled loop serves many lengths.
    capacity = 1 << (max_new_tokens - 1).bit_length()
    new_tokens = jnp.zeros((logits.shape[0], capacity), jnp.int32)
    progress = (jnp.int32(0), new_tokens, logits, decoding)
    stops = [max_new_tokens] if callback is None else range(1, max_new_tokens + 1)
    for stop in stops:
        progress = _decode(model, sampling, progress, jnp.int32(stop))
        if callback is not None:
            callback(np.asarray(progress[1][:, stop - 1]))
    return progress[1][:, :max_new_tokens]


def _read(model: Model, state: Any, tokens: ArrayLike, name: str) -> tuple[Array, Any, Any]:
    """As `prefill`, and what else is known of the point reached."""
    return decoder_of(model).read(model, state, tokens, name)


def start_decoding(model: Model, point: Any, rest: Any) -> Any:
    """Prepares decoding at a point, from what `_read` gives."""
    return decoder_of(model).start(model, point, rest)


def decode_token(model: Model, token: Array, decoding: Any) -> tuple[Array, Any]:
    """Reads one token [B] int32: logits [B, V] for the next one, and what is carried on."""
    return decoder_of(model).decode(model, token, decoding)


@jax.jit(donate_argnums=2)
def _decode(model, sampling: Sampling, progress, stop: Array):
    """The loop over tokens: samples and reads until `stop` tokens are there."""

    def body(progress):
        count, new_tokens, logits, decoding = progress
        token = sample(logits, sampling, count)
        new_tokens = jax.lax.dynamic_update_slice_in_dim(new_tokens, token[:, None], count, axis=1)
        logits, decoding = decode_token(model, token, decoding)
        return count + 1, new_tokens, logits, decoding

    return jax.lax.while_loop(lambda progress: progress[0] < stop, body, progress)
