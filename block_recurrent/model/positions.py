"""Relative positions of token self-attention: T5 bias or rotary embedding.

Both answer the same two questions, so that a layer never asks which one it holds: `bias(window)`,
what is added to a logit at each distance, and `rotate(x, positions)`, what happens to queries and
keys before their product.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.model.checks import check_positions, check_rotate, check_window, checked

NUM_BUCKETS = 32
MAX_DISTANCE = 128
MAX_WAVELENGTH = 10_000


def t5_bucket(distance: np.ndarray) -> np.ndarray:
    """Bucket of a token `distance` >= 0 positions back (T5, causal; Raffel et al. 2020).

    Distances below 16 have a bucket each, the next 16 buckets grow logarithmically up to 128.
    """
    exact = NUM_BUCKETS // 2
    growth = np.log(np.maximum(distance, exact) / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = exact + (growth * (NUM_BUCKETS - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(logarithmic, NUM_BUCKETS - 1))


def distances(window: int) -> np.ndarray:
    """[W] int: the distances a token sees, W to 1, in the order of the keys."""
    return np.arange(window, 0, -1)


class T5Bias(nnx.Module):
    """A learned bias per head and distance bucket (paper, section 3.1; T5).

    Attributes:
      table: [H, 32] float32, initially N(0, 1/32).
    """

    @checked(check_positions)
    def __init__(self, num_heads: int, *, rngs: nnx.Rngs):
        initializer = nnx.initializers.normal(NUM_BUCKETS**-0.5)
        self.table = nnx.Param(initializer(rngs.params(), (num_heads, NUM_BUCKETS), jnp.float32))

    @checked(check_window)
    def bias(self, window: int) -> Array:
        """[H, W] float32: the bias at distances W to 1."""
        one_hot = np.eye(NUM_BUCKETS, dtype=np.float32)[t5_bucket(distances(window))]
        # A product with constants: the gradient of a gather is a slow scatter.
        return jnp.einsum("hn,wn->hw", self.table[...], one_hot, precision="highest")

    def rotate(self, x: Array, positions: np.ndarray, rolled_by: Array | None = None) -> Array:
        """`x` unchanged: this scheme lives in the bias alone."""
        del positions, rolled_by
        return x


class Rotary(nnx.Module):
    """Rotary position embedding (Su et al. 2021), maximum wavelength 10,000."""

    @checked(check_positions)
    def __init__(self, num_heads: int):
        self.num_heads = num_heads

    @checked(check_window)
    def bias(self, window: int) -> Array:
        """[H, W] float32 zeros: this scheme lives in the rotation alone."""
        return jnp.zeros((self.num_heads, window), jnp.float32)

    @checked(check_rotate)
    def rotate(self, x: Array, positions: np.ndarray, rolled_by: Array | None = None) -> Array:
        """Turns pairs (j, j + D/2) of `x` [..., T, H, D] by `pi * p / 10000^(2j/D)` radians.

        Args:
          x: vectors.
          positions: the p, [T], known while a program is traced; only their differences matter.
          rolled_by: by how much to roll the positions, int32 scalar.

        Raises:
          ValueError: positions of another number, or an odd D.
        """
        half = x.shape[-1] // 2
        wavelengths = MAX_WAVELENGTH ** (np.arange(half) / half)
        # In float64: angles far into a segment are large, and float32 has too few digits for them.
        angles = np.pi / wavelengths * np.asarray(positions, np.float64)[:, None, None]
        sin, cos = (jnp.asarray(f(angles), jnp.float32) for f in (np.sin, np.cos))
        if rolled_by is not None:
            sin, cos = jnp.roll(sin, rolled_by, axis=0), jnp.roll(cos, rolled_by, axis=0)
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def make_positions(kind: str, num_heads: int, *, rngs: nnx.Rngs) -> T5Bias | Rotary:
    """The scheme called `kind`, "t5" or "rotary"."""
    return {"t5": lambda: T5Bias(num_heads, rngs=rngs), "rotary": lambda: Rotary(num_heads)}[kind]()


def window_bias(bias: Array, rows: int | None = None) -> Array:
    """Lays `bias` [H, W], distances W to 1, along the diagonals of a tile, [H, R, W + R].

    Row q of the tile is a query, column k a key, the first of which lies W before the first query:
    their distance is `W + q - k`. What lies outside 1..W is masked with minus infinity. The tile of
    a whole block and of its keys, [H, W, 2W], has `rows` R = W, which is the default; any R queries
    in a row and the keys they see have the same tile.
    """
    num_heads, window = bias.shape
    rows = rows or window
    masked = jnp.full((num_heads, rows + 1), -jnp.inf, bias.dtype)
    row, width = jnp.concatenate([bias, masked], axis=1), window + rows
    # Rows of W+R+1 read as rows of W+R: each starts one earlier than the last. No gather, and so
    # no scatter in the gradient.
    tile = jnp.broadcast_to(row[:, None], (num_heads, rows, width + 1))
    return tile.reshape(num_heads, -1)[:, : rows * width].reshape(num_heads, rows, width)
