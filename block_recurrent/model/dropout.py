"""Dropout by counting: whether an entry is kept follows from where it stands.

No mask is ever in memory, as whatever needs it computes it again, in a kernel or fused into a
matrix product; and a mask does not depend on how an array is shared out over devices. JAX's own
generator takes ten times the operations: on a TPU it costs more than the products around it.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest up; `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    kept = _is_kept(rate, hashed(_counted(x.shape), *make_seeds(key)))
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def make_seeds(key: Array, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """Two random words, or two for each of many masks, uint32 of `shape` each."""
    first, second = jax.random.bits(key, (2, *shape), jnp.uint32)
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
    kept = _is_kept(rate, hashed(row + queries * columns + keys, *seeds))
    return jnp.where(kept, jnp.float32(1 / (1 - rate)), jnp.float32(0))


def hashed(counter: Array, first: Array, second: Array) -> Array:
    """Scrambles a counter with two seeds, all uint32, by rounds of multiply and shift.

    Shifts and factors are those of lowbias32 (C. Wellons, hash-prospector).
    """
    x = counter ^ first
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D) + second
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def _is_kept(rate: float, bits: Array) -> Array:
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def _counted(shape: tuple[int, ...]) -> Array:
    """The number of each entry, row by row, uint32; beyond 2³² they begin again."""
    numbers = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        numbers += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return numbers
