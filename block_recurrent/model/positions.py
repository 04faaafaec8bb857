"""Relative positions of token self-attention: T5 bias or rotary embedding.

Both have the same two methods, so that a layer never asks which one it holds: `bias(window)` is
added to the logits, by distance, and `rotate(x, positions)` changes queries and keys before their
product.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Int, Int32

from block_recurrent.model import checks
from block_recurrent.model.array_types import DistanceBias, TileBias, Vectors

NUM_BUCKETS = 32
MAX_DISTANCE = 128
MAX_WAVELENGTH = 10_000


def t5_bucket(distance: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Bucket of a token `distance` >= 0 positions back (T5, causal; Raffel et al. 2020).

    Distances below 16 have a bucket each, the next 16 buckets grow logarithmically up to 128.
    """
    exact = NUM_BUCKETS // 2
    growth = np.log(np.maximum(distance, exact) / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = exact + (growth * (NUM_BUCKETS - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(logarithmic, NUM_BUCKETS - 1))


class T5Bias(nnx.Module):
    """A learned bias per head and distance bucket (paper, section 3.1; T5).

    Attributes:
      table: [H, 32] float32, initially N(0, 1/32).
    """

    def __init__(self, num_heads: int, *, rngs: nnx.Rngs):
        checks.check_size("num_heads", num_heads)
        checks.check_rngs(rngs)
        initializer = nnx.initializers.normal(NUM_BUCKETS**-0.5)
        self.table = nnx.Param(initializer(rngs.params(), (num_heads, NUM_BUCKETS), jnp.float32))

    def bias(self, window: int) -> DistanceBias:
        """The bias at distances W to 1."""
        checks.check_size("window", window)
        distances = np.arange(window, 0, -1)
        one_hot = np.eye(NUM_BUCKETS, dtype=np.float32)[t5_bucket(distances)]
        # A product with constants: the gradient of a gather is a slow scatter.
        return jnp.einsum("hn,wn->hw", self.table[...], one_hot, precision="highest")

    def rotate(self, x: Vectors, positions: np.ndarray, rolled_by: Array | None = None) -> Vectors:
        """`x` unchanged: this scheme is a bias alone."""
        del positions, rolled_by
        return x


class Rotary(nnx.Module):
    """Rotary position embedding (Su et al. 2021), maximum wavelength 10,000."""

    def __init__(self, num_heads: int):
        checks.check_size("num_heads", num_heads)
        self.num_heads = num_heads

    def bias(self, window: int) -> DistanceBias:
        """Zeros: this scheme is a rotation alone."""
        checks.check_size("window", window)
        return jnp.zeros((self.num_heads, window), jnp.float32)

    def rotate(
        self,
        x: Vectors,
        positions: Int[np.ndarray, "T"],
        rolled_by: Int32[Array, ""] | None = None,
    ) -> Vectors:
        """Rotates the pairs (j, j + D/2) of the vectors by `pi * p / 10000^(2j/D)` radians.

        Args:
          x: vectors.
          positions: the p, known while a program is traced; only their differences matter.
          rolled_by: how far to roll the positions.

        Raises:
          ValueError: positions of another number, or an odd D.
        """
        checks.check_array("x", x, "... T H D", np.floating)
        if x.shape[-1] % 2:
            raise ValueError(f"x has shape {x.shape}, but [..., T, H, an even D] is needed")
        checks.check_array("positions", positions, str(x.shape[-3]))
        half = x.shape[-1] // 2
        wavelengths = MAX_WAVELENGTH ** (np.arange(half) / half)
        # In float64: angles far into a segment are large, and float32 has too few digits for them.
        angles = np.pi / wavelengths * np.asarray(positions, np.float64)[:, None, None]
        sin, cos = (jnp.asarray(f(angles), jnp.float32) for f in (np.sin, np.cos))
        if rolled_by is not None:
            sin, cos = jnp.roll(sin, rolled_by, axis=0), jnp.roll(cos, rolled_by, axis=0)
        sin, cos = (jax.lax.broadcast_to_rank(y, x.ndim) for y in (sin, cos))
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)


# By the values of `LayerConfig.positions`.
POSITIONS: dict[str, Callable[[int, nnx.Rngs], T5Bias | Rotary]] = {
    "t5": lambda num_heads, rngs: T5Bias(num_heads, rngs=rngs),
    "rotary": lambda num_heads, rngs: Rotary(num_heads),
}


def window_bias(bias: DistanceBias, rows: int | None = None) -> TileBias:
    """Lays `bias`, at the distances W to 1, along the diagonals of a tile, [H, R, W + R].

    Row q of the tile is a query and column k a key. The first key is W before the first query, so
    that their distance is `W + q - k`. Distances outside 1..W are masked with minus infinity. Any
    R consecutive queries and the keys they see have the same tile. The default for `rows` R is W,
    the tile [H, W, 2W] of a whole block.
    """
    num_heads, window = bias.shape
    rows = rows or window
    masked = jnp.full((num_heads, rows + 1), -jnp.inf, bias.dtype)
    row, width = jnp.concatenate([bias, masked], axis=1), window + rows
    # Rows of W+R+1 read as rows of W+R: each starts one earlier than the last. No gather, and so
    # no scatter in the gradient.
    tile = jnp.broadcast_to(row[:, None], (num_heads, rows, width + 1))
    return tile.reshape(num_heads, -1)[:, : rows * width].reshape(num_heads, rows, width)
