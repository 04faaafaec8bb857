"""Layers that hold or use a few parameters: norm, dense layers, heads, dropout."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.model.checks import check_norm, check_norm_call, checked

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """`x * rsqrt(mean(x²) + 1e-6) * scale`, computed in float32.

    Attributes:
      scale: [E] float32, initially 1.
    """

    @checked(check_norm)
    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    @checked(check_norm_call)
    def __call__(self, x: Array) -> Array:
        """[..., E] of any float dtype -> [..., E] float32."""
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * self.scale


def dense(input_size: int, output_size: int, *, rngs: nnx.Rngs, scale: float = 1.0) -> nnx.Linear:
    """A float32 kernel [in, out] without bias, truncated normal of variance `scale / in`."""
    initializer = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nnx.Linear(input_size, output_size, use_bias=False, kernel_init=initializer, rngs=rngs)


def apply_dense(x: Array, *layers: nnx.Linear) -> list[Array]:
    """Each of `layers` applied to `x` [..., in], as one matrix product in the dtype of `x`."""
    boundaries = list(itertools.accumulate(layer.kernel.shape[1] for layer in layers))
    return jnp.split(apply_side_by_side(x, *layers), boundaries[:-1], axis=-1)


def apply_side_by_side(x: Array, *layers: nnx.Linear) -> Array:
    """As `apply_dense`, the outputs one after the other in the last axis."""
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    return product(x, kernel.astype(x.dtype))


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """`x` [..., in] times `kernel` [in, out].

    As `x @ kernel`, but the gradient of the kernel is laid out with its shorter side first: the
    other way round XLA:CPU takes twice as long.
    """
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.shape[-1] <= kernel.shape[1]:
        of_kernel = inputs.T @ outputs
    else:  # the barrier keeps XLA from turning it round again
        of_kernel = jax.lax.optimization_barrier(outputs.T @ inputs).T
    return gradient @ kernel.T, of_kernel


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """The larger of `x` and 0.

    As `jax.nn.relu`, but its gradient needs the output alone, and no mask: a TPU's compiler writes
    one to memory, which takes as long as a matrix product.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    return (gradient * jnp.sign(y),)


relu.defvjp(_relu_forward, _relu_backward)


Length = Array | float | None  # of a projection's vectors: [H] or of all heads; None: as they are


def split_heads(projected: Array, lengths: Sequence[Length], num_heads: int) -> list[Array]:
    """Cuts projections that stand side by side into heads, and gives their vectors a length.

    Args:
      projected: [..., T, P*H*D].
      lengths: of each of the P projections.
      num_heads: H.

    Returns:
      P arrays [..., T, H, D] in the dtype of `projected`.
    """
    parts = jnp.split(projected, len(lengths), axis=-1)
    heads = (part.reshape(*part.shape[:-1], num_heads, -1) for part in parts)
    return [
        x if length is None else l2_normalize(x, jnp.asarray(length)[..., None])
        for x, length in zip(heads, lengths, strict=True)
    ]


def l2_normalize(x: Array, scale: Array | float = 1.0) -> Array:
    """Vectors [..., D] divided by their length and multiplied by `scale` [..., 1] or a number.

    Computed in float32, returned in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    length = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return (wide * (length * scale)).astype(x.dtype)


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
