"""Gradient accumulation: the gradient of a batch, one microbatch after the other.

A microbatch takes the same number of rows from every device, so that no row moves between devices.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from block_recurrent.data import Batch
from block_recurrent.model.protocol import CarriedState, Model
from block_recurrent.parallel.axes import batch_axes

ROWS_OF_BATCH, ROWS_OF_CARRIED = 0, 1  # the axis of rows
Aside = tuple[Array, Array, CarriedState]


def accumulated_gradient(
    loss: Callable[..., tuple[Array, Aside]],
    count: int,
    model: Model,
    carried: CarriedState,
    batch: Batch,
    dropout_key: Array | None = None,
    sharding: Model | None = None,
) -> tuple[Model, Aside]:
    """What `jax.grad(loss, has_aux=True)` returns for the whole batch, equal to rounding.

    Only the activations of one microbatch exist at a time.

    Args:
      loss: `segment_loss`.
      count: the number of microbatches; B is a multiple of it on every device.
      model: the language model.
      carried: the rows' state from the segment before.
      batch: a segment of every row.
      dropout_key: dropout is on when given. Each microbatch has noise of its own.
      sharding: of the gradient; the compiler's choice unless given.

    Returns:
      The gradient; and summed nats, the number of targets (both float32), and the next state.
    """
    mesh, axes = batch_axes(cast(Array, batch.inputs))
    shards = math.prod(mesh.shape[axis] for axis in axes)
    targets = jnp.sum(batch.mask, dtype=jnp.int32).astype(jnp.float32)
    segments = _split_rows(batch, ROWS_OF_BATCH, shards, count)

    def add(sums: tuple[Any, Array, Any], number: Array) -> tuple[tuple[Any, Array, Any], None]:
        gradient, nats, states = sums
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        own, (own_nats, _, state) = jax.grad(loss, has_aux=True)(
            model,
            _take_rows(states, ROWS_OF_CARRIED, number),
            _take_rows(segments, ROWS_OF_BATCH, number),
            dropout_key=key,
            targets_of_mean=targets,
        )
        gradient = jax.tree.map(jnp.add, gradient, own)
        states = _put_rows(states, state, ROWS_OF_CARRIED, number)
        return (gradient, nats + own_nats, states), None

    zeros = jax.tree.map(jnp.zeros_like, model)
    if sharding is not None:
        zeros = jax.lax.with_sharding_constraint(zeros, sharding)
    sums = zeros, jnp.float32(0), _split_rows(carried, ROWS_OF_CARRIED, shards, count)
    (gradient, nats, states), _ = jax.lax.scan(add, sums, jnp.arange(count))
    carried = jax.tree.map(lambda x, like: x.reshape(like.shape), states, carried)
    return gradient, (nats, targets, carried)


def _split_rows(tree: Any, axis: int, shards: int, count: int) -> Any:
    """Cuts the axis B of all arrays into [devices, microbatches, rows]."""

    def split(x: Array) -> Array:
        rows = x.shape[axis] // (shards * count)
        return x.reshape(*x.shape[:axis], shards, count, rows, *x.shape[axis + 1 :])

    return jax.tree.map(split, tree)


def _take_rows(tree: Any, axis: int, number: Array) -> Any:
    """The rows of a microbatch, in arrays that `_split_rows` has cut."""

    def take(x: Array) -> Array:
        part = jax.lax.dynamic_index_in_dim(x, number, axis + 1, keepdims=False)
        return jax.lax.collapse(part, axis, axis + 2)

    return jax.tree.map(take, tree)


def _put_rows(tree: Any, rows: Any, axis: int, number: Array) -> Any:
    """Replaces the rows that `_take_rows` takes."""

    def put(x: Array, new: Array) -> Array:
        new = new.reshape(*x.shape[: axis + 1], *x.shape[axis + 2 :])
        return jax.lax.dynamic_update_index_in_dim(x, new, number, axis + 1)

    return jax.tree.map(put, tree, rows)
