"""The norm."""

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
