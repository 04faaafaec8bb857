"""What every implementation of attention is called with, and what is compared of it."""

import functools

import jax
import jax.numpy as jnp

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
