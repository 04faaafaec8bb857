"""Attention for CPUs and GPUs: rows of sub-blocks, and a gradient by hand.

A token sees half of the window's tile [W, 2W]. The tile is cut into rows of sub-blocks, each of
which holds R tokens and the W + R keys that they see together. The forward pass keeps its operands,
its result and two numbers for each query, the largest logit and the sum of the exponentials. From
them the backward pass computes the probabilities again in one pass over a tile (after Dao et al.
2022, arXiv 2205.14135).

On a CPU, XLA fuses two products and what is between them into one pass whose intermediates stay in
the cache, as long as nothing else uses them. Barriers keep other uses apart, and each product of
the gradient is written in the order for which XLA:CPU has a fast path. On a GPU barriers only write
tiles to memory, so there are none.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from block_recurrent.config import LayerConfig
from block_recurrent.model import layers
from block_recurrent.model.array_types import Blocks, DistanceBias, Key, Seeds, TileBias
from block_recurrent.model.attention.choice import Attention
from block_recurrent.model.attention.reference import sum_leading
from block_recurrent.model.positions import window_bias
from block_recurrent.model.rematerialization import keep
from block_recurrent.model.state import KeysValues, with_preceding


class Device(NamedTuple):
    """How a window is cut, and the gradient written.

    Attributes:
      most_parts: of a window.
      least_rows: R of a part, unless the window is smaller.
      cpu: whether what suits XLA:CPU is done.
    """

    most_parts: int
    least_rows: int
    cpu: bool


CPU, GPU = Device(8, 64, True), Device(4, 128, False)


class Settings(NamedTuple):
    """What is known when attention is compiled: R, the rate of dropout, and the device."""

    rows: int
    rate: float
    cpu: bool


def attend(
    queries: Float[Array, "... Q H D"], context: KeysValues, *, device: Device = CPU
) -> Float[Array, "... Q H D"]:
    """As `reference.attend` without bias and dropout."""
    queries, keys, values = map(_swap_heads, (queries, *context))
    settings = Settings(queries.shape[-2], 0.0, device.cpu)
    return _swap_heads(_attend(settings, queries, keys, values, None, None))


def attend_window(
    queries: Blocks,
    current: KeysValues,
    previous: KeysValues,
    bias: DistanceBias,
    *,
    detached: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    device: Device = CPU,
) -> Blocks:
    """As `reference.attend_window`."""
    rows = rows_at_once(queries.shape[-3], device)
    keys, values = map(_swap_heads, with_preceding(current, previous, detached=detached))
    seeds = None
    if dropout_key is not None and dropout_rate > 0.0:
        seeds = layers.make_seeds(dropout_key, queries.shape[:-3])
    settings = Settings(rows, dropout_rate, device.cpu)
    tile = window_bias(bias, rows)
    return _swap_heads(_attend(settings, _swap_heads(queries), keys, values, tile, seeds))


def rows_at_once(window: int, device: Device) -> int:
    """R, how many tokens a row of sub-blocks holds: an equal part of the window, not too few."""
    rows = max(window // device.most_parts, device.least_rows)
    return rows if window % rows == 0 else window


def _swap_heads(x: Float[Array, "... T H D"]) -> Float[Array, "... H T D"]:
    """To heads first, or back again."""
    return jnp.swapaxes(x, -3, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    settings: Settings,
    queries: Float[Array, "... H Q D"],
    keys: Float[Array, "... H T D"],
    values: Float[Array, "... H T D"],
    tile: TileBias | None,
    seeds: Seeds | None,
) -> Float[Array, "... H Q D"]:
    """Attention with heads first; all parts have the same `tile`, [H, R, W + R]."""
    return _attend_forward(settings, queries, keys, values, tile, seeds)[0]


def _attend_forward(
    settings: Settings,
    queries: Array,
    keys: Array,
    values: Array,
    tile: TileBias | None,
    seeds: Seeds | None,
) -> tuple[Array, tuple]:
    parts = []
    for part in _parts(settings, queries, keys, tile):
        logits = part.logits(queries, keys, tile)
        largest = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = weights.sum(axis=-1, keepdims=True)
        weights = part.dropped(weights, seeds).astype(values.dtype)
        heads = _product("...qt,...td->...qd", weights, part.seen(values))
        parts.append(((heads / total).astype(values.dtype), largest, total))
    kept = keep([jnp.concatenate(x, axis=-2) for x in zip(*parts, strict=True)])
    return kept[0], ((queries, keys, values, tile, seeds), *kept)


def _attend_backward(settings: Settings, saved: tuple, gradient: Array) -> tuple:
    # The first barrier keeps XLA from merging this computation of the weights with the forward one,
    # which would then have to be kept. The others keep a value that is used more than once apart
    # from its uses.
    barrier = jax.lax.optimization_barrier if settings.cpu else lambda x: x
    (queries, keys, values, tile, seeds), attended, largest, total = barrier(saved)
    dtype = values.dtype
    mean = _product("...qd,...qd->...q", gradient, attended)[..., None]
    of_queries, of_tile = [], None if tile is None else jnp.zeros_like(tile)
    of_keys, of_values = (jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    for part in _parts(settings, queries, keys, tile):
        ours, mine = part.own(queries), part.own(gradient)
        weights = jnp.exp(part.logits(queries, keys, tile) - part.own(largest))
        probabilities = barrier(weights / part.own(total))
        of_probabilities = _product("...qd,...td->...qt", mine, part.seen(values))
        of_probabilities = part.dropped(of_probabilities, seeds)
        of_logits = barrier(probabilities * (of_probabilities - part.own(mean)))
        low, dropped = of_logits.astype(dtype), part.dropped(probabilities, seeds).astype(dtype)
        if of_tile is not None:
            axes = tuple(range(of_logits.ndim - 3))
            of_tile += sum_leading(of_logits) if settings.cpu else of_logits.sum(axis=axes)
        of_keys += part.among_all(_transposed_product(low, ours, settings.cpu))
        of_values += part.among_all(_transposed_product(dropped, mine, settings.cpu))
        of_queries.append(jnp.einsum("...qt,...td->...qd", low, part.seen(keys)))
    of_queries = jnp.concatenate(of_queries, axis=-2)
    return of_queries, of_keys.astype(dtype), of_values.astype(dtype), of_tile, None


_attend.defvjp(_attend_forward, _attend_backward)


class _Part(NamedTuple):
    """Some queries and the keys that they see together.

    Attributes:
      settings: of the program; R queries are taken at once.
      first: index of the first query and of the first key.
      width: number of keys, W + R.
      keys: T of all parts.
      queries: Q of all parts.
    """

    settings: Settings
    first: int
    width: int
    keys: int
    queries: int

    def own(self, x: Array) -> Array:
        """The rows of the part's queries."""
        return x[..., self.first : self.first + self.settings.rows, :]

    def seen(self, x: Array) -> Array:
        """The rows of the part's keys."""
        return x[..., self.first : self.first + self.width, :]

    def among_all(self, x: Array) -> Array:
        """Rows of the part's keys among those of all keys; the others are zero."""
        after = self.keys - self.first - self.width
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(self.first, after), (0, 0)])

    def logits(
        self, queries: Array, keys: Array, tile: TileBias | None
    ) -> Float32[Array, "... H R T"]:
        """The logits of the part's queries for its keys."""
        logits = _product("...qd,...td->...qt", self.own(queries), self.seen(keys))
        return logits if tile is None else logits + jax.lax.broadcast_to_rank(tile, logits.ndim)

    def dropped(self, x: Float32[Array, "... H R T"], seeds: Seeds | None) -> Array:
        """`x` after the dropout of probabilities."""
        if seeds is None:
            return x
        whole = x.shape[-3], self.queries, self.keys
        number = self.first * (self.keys + 1)
        return layers.drop_part(x, self.settings.rate, seeds, whole, number)


def _parts(settings: Settings, queries: Array, keys: Array, tile: TileBias | None) -> list[_Part]:
    count, total = queries.shape[-2], keys.shape[-2]
    width = total if tile is None else tile.shape[-1]
    return [_Part(settings, i, width, total, count) for i in range(0, count, settings.rows)]


def _product(formula: str, x: Array, y: Array) -> Float32[Array, "..."]:
    return jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)


def _transposed_product(
    x: Float[Array, "... Q T"], y: Float[Array, "... Q D"], cpu: bool
) -> Float32[Array, "... T D"]:
    """`xᵀ y`; on a CPU in the order that is faster there."""
    if not cpu:
        return _product("...qt,...qd->...td", x, y)
    summed = _product("...qd,...qt->...dt", y, x)
    return jnp.swapaxes(jax.lax.optimization_barrier(summed), -1, -2)


# Built once, because models compare equal only if they hold the same functions.
ON_CPU = Attention(attend, attend_window)
ON_GPU = Attention(
    functools.partial(attend, device=GPU), functools.partial(attend_window, device=GPU)
)


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation for a platform; it suits every layer."""
    del config
    return ON_CPU if platform == "cpu" else ON_GPU
