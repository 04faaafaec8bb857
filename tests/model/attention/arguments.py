"""What every implementation of attention is called with, and what is compared of it."""

import functools

import jax
import jax.numpy as jnp

from block_recurrent.model.layers import window_factors
from block_recurrent.model.state import KeysValues
from tests.helpers import random_like

RATE = 0.3  # of dropout


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(function, *arguments):
    output, pull = jax.vjp(function, *arguments)
    return output, pull(random_like(output, seed=9))


def window_arguments(window, dtype="float32", lanes=(2, 2), heads=2, size=8):
    one = (window, heads, size)
    arrays = random_like([jnp.zeros((*lanes, *one))] * 3 + [jnp.zeros((lanes[0], *one))] * 2)
    queries, *others = (x.astype(dtype) for x in arrays)
    bias = random_like(jnp.zeros((heads, window)), seed=5)
    return queries, KeysValues(*others[:2]), KeysValues(*others[2:]), bias


def with_mask(queries, context, bias, key):
    """Attention whose dropout is that of kernels, the mask made at once. `bias` [H, Q, T]."""
    logits = jnp.einsum("...qhd,...thd->...hqt", queries, context.keys)
    logits += jax.lax.broadcast_to_rank(bias, logits.ndim)
    kept = window_factors(RATE, key, logits.shape)
    probabilities = jax.nn.softmax(logits) * kept
    return jnp.einsum("...hqt,...thd->...qhd", probabilities, context.values), kept
