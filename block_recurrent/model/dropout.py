"""Dropout by counting: whether an entry is kept follows from where it stands.

Masks are not kept: whatever needs one computes it again, in a kernel or fused into a matrix product
(`tiled` attention is the exception). And a mask does not depend on how an array is shared out over
devices. JAX's own generator takes six times the operations: on a TPU it costs more than the
products around it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest up; `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    return _drop(rate, x, make_seeds(key))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _drop(rate: float, x: Array, seeds: tuple[Array, Array]) -> Array:
    first, second = seeds
    kept = _is_kept(rate, hashed(_counted(first, x.shape), second))
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def _drop_forward(rate: float, x: Array, seeds: tuple[Array, Array]) -> tuple[Array, tuple]:
    return _drop(rate, x, seeds), seeds


def _drop_backward(rate: float, seeds: tuple[Array, Array], gradient: Array) -> tuple:
    return _drop(rate, gradient, seeds), (None, None)


_drop.defvjp(_drop_forward, _drop_backward)


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


def _counted(first: Array, shape: tuple[int, ...]) -> Array:
    """Numbers of all entries, row by row, from `first` on, uint32; beyond 2³² they begin again.

    No array of all of them is without `first`: XLA would compute it once for all layers, and keep.
    """
    numbers = first
    for axis, length in enumerate(shape):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        numbers = numbers[..., None] + stride * jnp.arange(length, dtype=jnp.uint32)
    return numbers
