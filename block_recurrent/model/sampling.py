"""Drawing tokens from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int32

from block_recurrent.model.array_types import AnyArray, Index, Key, Token, TokenLogits

NONE = np.zeros(0, np.int32)


class Sampling(NamedTuple):
    """How a token is drawn from the logits, as `generate` says; None leaves a filter out."""

    key: Key  # each token of each row has a key of its own derived from it
    temperature: Float32[Array, ""]
    top_k: Index | None
    top_p: Float32[Array, ""] | None
    min_p: Float32[Array, ""] | None = None
    stop_tokens: Int32[AnyArray, "n"] = NONE


def sample(logits: TokenLogits, sampling: Sampling, count: Index) -> Token:
    """Draws one token for each row; `count` tokens were drawn before."""
    scaled = logits / jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    kept = keep_top_p(keep_top_k(scaled, sampling.top_k), sampling.top_p)
    kept = keep_min_p(kept, sampling.min_p)
    keys = jax.random.split(jax.random.fold_in(sampling.key, count), logits.shape[0])
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    greedy = jnp.argmax(logits, axis=-1)
    return jnp.where(sampling.temperature > 0, drawn, greedy).astype(jnp.int32)


def keep_top_k(logits: TokenLogits, top_k: Index | None) -> TokenLogits:
    """Minus infinity for all but the `top_k` largest logits of each row."""
    if top_k is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    place = jnp.minimum(top_k, logits.shape[-1]) - 1
    smallest = jax.lax.dynamic_index_in_dim(descending, place, axis=-1)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: TokenLogits, top_p: Float32[Array, ""] | None) -> TokenLogits:
    """Minus infinity for all but the fewest tokens of a row whose probability reaches `top_p`."""
    if top_p is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_min_p(logits: TokenLogits, min_p: Float32[Array, ""] | None) -> TokenLogits:
    """Minus infinity for tokens less probable than `min_p` times the most probable of the row."""
    if min_p is None:
        return logits
    smallest = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits < smallest, -jnp.inf, logits)
