"""Small layers that all others are made of: norm, dense layers, heads, dropout."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Float32, UInt32

from block_recurrent.model import checks
from block_recurrent.model.array_types import Key, Seeds, Vectors
from block_recurrent.parallel.axes import gather, tensor_shards

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """`x * rsqrt(mean(x²) + 1e-6) * scale`, computed in float32.

    Attributes:
      scale: [E] float32, initially 1.
    """

    def __init__(self, size: int):
        checks.check_size("size", size)
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: Float[Array, "... E"]) -> Float32[Array, "... E"]:
        """The vectors `x` with a root mean square of 1, times `scale`."""
        checks.check_array("x", x, f"... {self.scale.shape[0]}", np.floating)
        x = x.astype(jnp.float32)
        normalized = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
        return normalized * jax.lax.broadcast_to_rank(self.scale[...], x.ndim)


# Dense layers, several of them as one matrix product.

INPUTS, OUTPUTS = 0, 1  # the axes of a kernel


def dense(input_size: int, output_size: int, *, rngs: nnx.Rngs, scale: float = 1.0) -> nnx.Linear:
    """A float32 kernel [in, out] without bias, truncated normal of variance `scale / in`."""
    initializer = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nnx.Linear(input_size, output_size, use_bias=False, kernel_init=initializer, rngs=rngs)


def apply_dense(
    x: Float[Array, "... I"], *layers: nnx.Linear, shared: int | None
) -> list[Float[Array, "... O"]]:
    """Each of `layers` applied to `x`, as one matrix product in the dtype of `x`.

    `shared` is the axis of their kernels that devices share out along `tensor`: `INPUTS`, `OUTPUTS`
    or None.
    """
    boundaries = list(itertools.accumulate(layer.kernel.shape[1] for layer in layers))
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    return jnp.split(product(x, kernel, shared), boundaries[:-1], axis=-1)


def project_to_heads(
    x: Float[Array, "... I"], num_heads: int, *layers: nnx.Linear
) -> Float[Array, "... O"]:
    """As `apply_dense`, with the outputs concatenated along the last axis, for `split_heads`.

    Where devices have heads of their own, first come all outputs of the first device's heads.
    """
    kernels = [layer.kernel[...] for layer in layers]
    shards = tensor_shards(kernels[0], num_heads)
    kernel = jnp.concatenate([_by_shard(kernel, shards) for kernel in kernels], axis=-1)
    return product(x, kernel.reshape(x.shape[-1], -1), OUTPUTS)


def _by_shard(x: Array, shards: int) -> Array:
    """The last axis in two, if devices share it out: XLA:CPU would copy to make an axis of one."""
    return x.reshape(*x.shape[:-1], shards, -1) if shards > 1 else x


def product(
    x: Float[Array, "... I"], kernel: Float32[Array, "I O"], shared: int | None
) -> Float[Array, "... O"]:
    """`x @ kernel` in the dtype of `x`, with a float32 gradient for the kernel.

    That is the sum over tokens as the product leaves it, so devices add up their parts in float32.
    `shared` is as in `apply_dense`.
    """
    result: Any = _product(shared, x, kernel)
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(shared: int | None, x: Array, kernel: Array) -> Array:
    return _product_forward(shared, x, kernel)[0]


def _product_forward(
    shared: int | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    rounded = gather(kernel.astype(x.dtype), shared)
    return x @ rounded, (x, rounded)


def _product_backward(
    shared: int | None, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    of_kernel = jax.lax.platform_dependent(
        inputs, outputs, cpu=_shorter_side_first, default=_sum_over_tokens
    )
    return gradient @ kernel.T, gather(of_kernel, shared)


def _sum_over_tokens(
    left: Float[Array, "N I"], right: Float[Array, "N O"]
) -> Float32[Array, "I O"]:
    return jnp.matmul(left.T, right, preferred_element_type=jnp.float32)


def _shorter_side_first(left: Array, right: Array) -> Array:
    """As `_sum_over_tokens`, which takes XLA:CPU twice as long if `left` is the longer one."""
    if left.shape[1] <= right.shape[1]:
        return _sum_over_tokens(left, right)
    # The barrier keeps XLA from transposing it back. In a loop it also keeps XLA from adding up
    # the gradient of a kernel on each device, and over devices once, after the loop.
    return jax.lax.optimization_barrier(_sum_over_tokens(right, left)).T


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """`max(x, 0)`, whose gradient needs the output and no mask.

    A TPU's compiler writes the mask of `jax.nn.relu` to memory, which takes as long as a matrix
    product.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    return (gradient * jnp.sign(y),)


relu.defvjp(_relu_forward, _relu_backward)


# Heads.

# Of a projection's vectors: one for each head [H], or for all heads; None leaves them as they are.
Length = Float32[Array, "H"] | float | None


def split_heads(
    projected: Float[Array, "... T PHD"], lengths: Sequence[Length], num_heads: int
) -> list[Vectors]:
    """Splits concatenated projections into heads and scales their vectors to a length.

    Args:
      projected: P projections, as `project_to_heads` concatenates them.
      lengths: of the vectors of each projection.
      num_heads: H.

    Returns:
      P arrays in the dtype of `projected`.
    """
    by_shard = _by_shard(projected, tensor_shards(projected, num_heads))
    parts = jnp.split(by_shard, len(lengths), axis=-1)
    heads = (part.reshape(*projected.shape[:-1], num_heads, -1) for part in parts)

    def scale(x: Vectors, length: Length) -> Vectors:
        if length is None:
            return x
        return l2_normalize(x, jax.lax.broadcast_to_rank(jnp.asarray(length)[..., None], x.ndim))

    return [scale(x, length) for x, length in zip(heads, lengths, strict=True)]


def l2_normalize(
    x: Float[Array, "... D"], scale: Float[Array, "... 1"] | float = 1.0
) -> Float[Array, "... D"]:
    """Vectors divided by their length and multiplied by `scale`, computed in float32."""
    wide = x.astype(jnp.float32)
    length = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return (wide * (length * scale)).astype(x.dtype)


# Dropout. The index of an entry in its array and two random words decide whether it is kept. A mask
# can therefore be computed wherever it is applied, in a kernel or fused into a matrix product, and
# does not depend on how an array is sharded. It takes a few operations; a product that JAX's own
# random bits are fused into takes a TPU up to twice as long, by its compiler's estimate.


def dropout(x: Array, rate: float, key: Key | None, leading_axes: int = 0) -> Array:
    """Zeros a fraction `rate` of `x` and scales the rest up; returns `x` itself without a key.

    Each index of the first `leading_axes` axes has its own mask.
    """
    if key is None or rate == 0.0:
        return x
    seeds = make_seeds(key, x.shape[:leading_axes])
    return drop_part(x, rate, seeds, x.shape[leading_axes:], 0)


def split_key(key: Key | None, parts: int) -> list[Key | None]:
    """Independent keys, or as many Nones."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


def drop_part(
    x: Array, rate: float, seeds: Seeds, whole: tuple[int, ...], number: Array | int
) -> Array:
    """`dropout` of a part of an array, with the mask that the whole array has there.

    Args:
      x: the part; its first axes are those of `seeds`.
      rate: fraction that is dropped.
      seeds: those of each mask.
      whole: shape of a mask.
      number: index of the part's first entry in the flattened array.
    """
    first, step = seeds
    masks, part = x.shape[: first.ndim], x.shape[first.ndim :]
    # Every term has a random word, because XLA would compute terms without one once for all layers,
    # at the shape of `x`, and keep them.
    offset = first + step * jnp.asarray(number).astype(jnp.uint32)
    numbers = jax.lax.broadcast_in_dim(offset, x.shape, range(len(masks)))
    for axis, length in enumerate(part):
        stride = jnp.uint32(math.prod(whole[axis + 1 :]) % 2**32)
        steps = jnp.multiply.outer(step, stride * jnp.arange(length, dtype=jnp.uint32))
        axes = (*range(len(masks)), len(masks) + axis)
        numbers += jax.lax.broadcast_in_dim(steps, x.shape, axes)
    return jnp.where(is_kept(rate, numbers), x / (1.0 - rate), jnp.zeros((), x.dtype))


def make_seeds(key: Key, shape: tuple[int, ...] = ()) -> Seeds:
    """Two random words for one mask, or for each of `shape` masks.

    An entry's number in its mask is the first word and, times its index, the second, which is odd.
    """
    first, step = jax.random.bits(key, (2, *shape), jnp.uint32)
    return first, step | jnp.uint32(1)


def seeds_of_parts(seeds: Seeds, parts: int, entries: int) -> Seeds:
    """Seeds of so many parts of each mask, one after the other, of so many entries each."""
    first, step = (x[..., None] for x in seeds)
    numbers = jnp.arange(parts, dtype=jnp.uint32) * jnp.uint32(entries % 2**32)
    first = first + step * jax.lax.broadcast_to_rank(numbers, first.ndim)
    return first, jnp.broadcast_to(step, first.shape)


def is_kept(rate: float, numbers: UInt32[Array, "..."]) -> Bool[Array, "..."]:
    """Whether dropout keeps entries, by a hash of their numbers.

    Numbers in equal steps, whose bits are then mixed, are SplitMix (Steele et al. 2014); shifts and
    factors are MurmurHash3's. The last shift is left out, because it leaves the highest bits as
    they are, and these decide.
    """
    x = (numbers ^ (numbers >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    # As integers with a sign, because a TPU compares no others.
    return x.astype(jnp.int32) >= jnp.int32(int(rate * 2**32) - 2**31)
