"""Projections cut into heads, and vectors of one length."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.model.norm import EPSILON

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
