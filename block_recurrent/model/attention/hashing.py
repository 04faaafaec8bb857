"""Dropout by counting: whether a probability is kept follows from where it stands.

A kernel computes the mask again wherever it needs it, and no mask is ever in memory. Letters:
G windows, Q queries, T keys.
"""

import jax
import jax.numpy as jnp
from jax import Array


def make_seeds(key: Array, windows: int) -> tuple[Array, Array]:
    """Two random words for each window, [G] uint32 each."""
    first, second = jax.random.bits(key, (2, windows), jnp.uint32)
    return first, second


def keep_factors(
    rate: float, seeds: tuple[Array, Array], row: Array, shape: tuple[int, int], columns: Array
) -> Array:
    """What a tile's probabilities are multiplied with: 0, or 1 / (1 - rate).

    Args:
      rate: share of them that is dropped.
      seeds: the window's words, uint32.
      row: uint32, number of the tile's first probability: those of all heads and queries of a
        window are numbered in a row.
      shape: of the tile, queries and keys.
      columns: uint32, how many probabilities one query has.

    Returns:
      float32 of `shape`.
    """
    queries = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    keys = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    bits = hashed(row + queries * columns + keys, *seeds)
    kept = bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    return jnp.where(kept, jnp.float32(1 / (1 - rate)), jnp.float32(0))


def hashed(counter: Array, first: Array, second: Array) -> Array:
    """Scrambles a counter with two seeds, all uint32, by rounds of multiply and shift.

    Shifts and factors are those of lowbias32 (C. Wellons, hash-prospector).
    """
    x = counter ^ first
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D) + second
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))
