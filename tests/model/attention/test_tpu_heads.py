"""Heads cut by kernels, interpreted on a CPU, are those of the reference, gradients included."""

import functools

import jax.numpy as jnp
import pytest

from block_recurrent.model import layers
from block_recurrent.model.attention.tpu import heads
from tests.helpers import assert_close, random_like
from tests.model.attention.arguments import values_and_gradients

TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-2}
HEADS = 2


def split(function, projected, scale, **options):
    return function(projected, [1.0, None, scale], HEADS, **options)


def results(tokens, size, dtype):
    """Of the kernels and of the reference."""
    shapes = [(3, tokens, 3 * HEADS * size), (HEADS,)]
    projected, scale = random_like([jnp.zeros(shape) for shape in shapes])
    arguments = projected.astype(dtype), jnp.abs(scale) + 1
    kernels = functools.partial(heads.split_heads, interpret=True)
    return [
        values_and_gradients(functools.partial(split, function), *arguments)
        for function in (kernels, layers.split_heads)
    ]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_heads_and_gradients_are_those_of_the_reference(dtype):
    actual, expected = results(256, 128, dtype)
    assert actual[0][0].shape == (3, 256, HEADS, 128)
    assert actual[0][0].dtype == dtype
    assert_close(actual, expected, TOLERANCES[dtype])


def test_many_tokens_are_taken_in_several_steps(monkeypatch):
    monkeypatch.setattr(heads, "MOST_BYTES", 128 * 3 * HEADS * 128 * 4)
    assert_close(*results(384, 128, "float32"))


@pytest.mark.parametrize("tokens, size", [(1, 128), (128, 8)])
def test_sizes_without_a_kernel_are_left_to_the_reference(tokens, size):
    assert_close(*results(tokens, size, "float32"), 0)
