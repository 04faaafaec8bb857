"""Attention and the small pieces around it, as pure functions of arrays, and the norm.

Letters: B batch, N segment, W window, K = N / W blocks, S states, E model size, H heads, D head
size. Heads stand second to last, `[..., H, D]`, wherever queries, keys and values are passed.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.model.checks import check_norm, check_norm_call, checked
from block_recurrent.model.state import KeysValues, concatenate

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


def l2_normalize(x: Array, scale: Array | float = 1.0) -> Array:
    """Vectors [..., D] divided by their length and multiplied by `scale` [..., 1] or a number.

    Computed in float32, returned in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    length = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return (wide * (length * scale)).astype(x.dtype)


def dense(input_size: int, output_size: int, *, rngs: nnx.Rngs, scale: float = 1.0) -> nnx.Linear:
    """A float32 kernel [in, out] without bias, truncated normal of variance `scale / in`."""
    initializer = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nnx.Linear(input_size, output_size, use_bias=False, kernel_init=initializer, rngs=rngs)


def apply_dense(x: Array, *layers: nnx.Linear) -> list[Array]:
    """Each of `layers` applied to `x` [..., in], as one matrix product in the dtype of `x`."""
    kernels = [layer.kernel[...] for layer in layers]
    kernel = jnp.concatenate(kernels, axis=1).astype(x.dtype)
    boundaries = list(itertools.accumulate(kernel.shape[1] for kernel in kernels))
    return jnp.split(x @ kernel, boundaries[:-1], axis=-1)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of `x` and scales the rest up; `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def attend(
    queries: Array,
    context: KeysValues,
    bias: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Softmax attention, the softmax in float32.

    Args:
      queries: [..., Q, H, D], already scaled.
      context: keys and values, [..., T, H, D].
      bias: [H, Q, T] float32 added to the logits; minus infinity hides a key.
      dropout_rate: share of the probabilities dropped when `dropout_key` is given.
      dropout_key: None for no dropout.

    Returns:
      [..., Q, H, D] in the dtype of the values.
    """
    # Heads first and positions last, and the division after the product: on a CPU a training step
    # with another layout takes up to twice as long.
    queries = jnp.einsum("...qhd->...hqd", queries)
    keys = jnp.einsum("...thd->...hdt", context.keys)
    values = jnp.einsum("...thd->...hdt", context.values)
    logits = jnp.einsum("...hqd,...hdt->...hqt", queries, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = add_shared(logits, bias)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = dropout(weights, dropout_rate, dropout_key).astype(values.dtype)
    heads = jnp.einsum("...hqt,...hdt->...hqd", weights, values, preferred_element_type=jnp.float32)
    return jnp.einsum("...hqd->...qhd", (heads / total).astype(values.dtype))


@jax.custom_vjp
def add_shared(x: Array, shared: Array) -> Array:
    """`x` [..., H, Q, T] plus `shared` [H, Q, T].

    As `x + shared`, but the gradient's sum over the leading axes is a matrix product: as a
    reduction it takes XLA:CPU longer than the attention itself.
    """
    return x + shared


def _add_shared_forward(x: Array, shared: Array) -> tuple[Array, None]:
    return x + shared, None


def _add_shared_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    shape = gradient.shape[-3:]
    rows = gradient.reshape(-1, math.prod(shape))
    summed = jnp.ones(rows.shape[:1], rows.dtype) @ rows
    return gradient, summed.reshape(shape)


add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def split_blocks(x: Array, window: int) -> Array:
    """[B, N, ...] -> [B, K, W, ...]."""
    batch, length, *rest = x.shape
    return x.reshape(batch, length // window, window, *rest)


def join_blocks(x: Array) -> Array:
    """[B, K, W, ...] -> [B, N, ...]."""
    batch, blocks, window, *rest = x.shape
    return x.reshape(batch, blocks * window, *rest)


def window_tiles(current: KeysValues, previous: KeysValues) -> KeysValues:
    """Pairs every block with the block before it.

    Args:
      current: of the segment, [B, N, H, D].
      previous: of the window before the segment, [B, W, H, D].

    Returns:
      [B, K, 2W, H, D]: what the tokens of each block, and the states, attend to.
    """

    def tile(x: Array, before: Array) -> Array:
        blocks = split_blocks(x, before.shape[1])
        shifted = jnp.concatenate([before[:, None], blocks[:, :-1]], axis=1)
        return jnp.concatenate([shifted, blocks], axis=2)

    return jax.tree.map(tile, current, previous)


def concatenate_windows(previous: KeysValues, current: KeysValues) -> KeysValues:
    """Two windows [B, W, H, D] -> [B, 2W, H, D]."""
    return concatenate([previous, current], axis=1)


def last_window(current: KeysValues, window: int) -> KeysValues:
    """The last W keys and values of a segment, [B, N, H, D] -> [B, W, H, D]."""
    return jax.tree.map(lambda x: x[:, -window:], current)
