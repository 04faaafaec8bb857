"""Drawing tokens from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Sampling(NamedTuple):
    """How a token is drawn from the logits; None leaves a filter out.

    Attributes:
      key: each token of each row has a key of its own derived from it.
      temperature: float32 scalar, divides the logits; 0 takes the most likely token.
      top_k: int32 scalar, only the k most likely tokens.
      top_p: float32 scalar, only the fewest tokens that have this probability together.
    """

    key: Array
    temperature: Array
    top_k: Array | None
    top_p: Array | None


def sample(logits: Array, sampling: Sampling, count: Array) -> Array:
    """Draws one token a row: logits [B, V] -> [B] int32; `count` tokens were drawn before."""
    scaled = logits / jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    kept = keep_top_p(keep_top_k(scaled, sampling.top_k), sampling.top_p)
    keys = jax.random.split(jax.random.fold_in(sampling.key, count), logits.shape[0])
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    greedy = jnp.argmax(logits, axis=-1)
    return jnp.where(sampling.temperature > 0, drawn, greedy).astype(jnp.int32)


def keep_top_k(logits: Array, top_k: Array | None) -> Array:
    """Minus infinity for all but the `top_k` largest logits of each row [B, V]."""
    if top_k is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    place = jnp.minimum(top_k, logits.shape[-1]) - 1
    smallest = jax.lax.dynamic_index_in_dim(descending, place, axis=-1)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: Array, top_p: Array | None) -> Array:
    """Minus infinity for all but the fewest tokens of a row whose probability reaches `top_p`."""
    if top_p is None:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
