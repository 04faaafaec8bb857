"""Dropout by counting: whether an entry is kept follows from where it stands.

So a mask can be computed wherever it is applied, in a kernel or fused into a matrix product, and
does not depend on how an array is shared out over devices. It is a few operations: a product that
JAX's own random bits are fused into takes a TPU up to twice as long, by its compiler's estimate.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest up; `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    return drop_part(x, rate, make_seeds(key), x.shape, 0)


def drop_part(
    x: Array,
    rate: float,
    seeds: tuple[Array, Array],
    whole: tuple[int, ...],
    number: Array | int,
) -> Array:
    """`dropout` of a part of an array: what falls out is what would fall out of all of it.

    Args:
      x: the part.
      rate: share of the array that is dropped.
      seeds: the array's words, uint32.
      whole: shape of the array.
      number: in the array, of the part's first entry.
    """
    first, second = seeds
    kept = _is_kept(rate, hashed(_counted(first, x.shape, whole, number), second))
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def make_seeds(key: Array, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """Two random words, or two for each of many masks, uint32 of `shape` each."""
    first, second = jax.random.bits(key, (2, *shape), jnp.uint32)
    return first, second


def keep_factors(
    rate: float, seeds: tuple[Array, Array], number: Array, shape: tuple[int, int], columns: Array
) -> Array:
    """What a tile's probabilities are multiplied with: 0, or 1 / (1 - rate).

    Args:
      rate: share of them that is dropped.
      seeds: the window's words, uint32.
      number: uint32, of the tile's first probability: those of all heads and queries of a
        window are numbered in a row.
      shape: of the tile, queries and keys.
      columns: uint32, how many probabilities one query has.

    Returns:
      float32 of `shape`.
    """
    queries = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    keys = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    first, second = seeds
    kept = _is_kept(rate, hashed(first + number + queries * columns + keys, second))
    return jnp.where(kept, jnp.float32(1 / (1 - rate)), jnp.float32(0))


def hashed(counter: Array, seed: Array) -> Array:
    """Scrambles a counter, which begins anywhere, with a seed, by rounds of multiply and shift.

    All are uint32. Shifts and factors are those of lowbias32 (C. Wellons, hash-prospector).
    """
    x = counter
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D) + seed
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def _is_kept(rate: float, bits: Array) -> Array:
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def _counted(
    first: Array, shape: tuple[int, ...], whole: tuple[int, ...], number: Array | int
) -> Array:
    """Numbers of a part's entries, row by row of the whole, uint32; they begin anywhere.

    Beyond 2³² they begin again. `first` has a part in every term: XLA would compute those without
    it once for all layers, of the whole shape, and keep them.
    """
    numbers = jnp.asarray(number).astype(jnp.uint32)
    for axis, length in enumerate(shape):
        stride = jnp.uint32(math.prod(whole[axis + 1 :]) % 2**32)
        along = first + stride * jnp.arange(length, dtype=jnp.uint32)
        numbers += jax.lax.broadcast_in_dim(along, shape, (axis,))
    return numbers
