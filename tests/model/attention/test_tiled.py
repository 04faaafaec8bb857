"""Attention in tiles computes what the reference computes: values, gradients, dropout."""

import functools

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.model.attention import reference, tiled
from block_recurrent.model.state import KeysValues
from tests.helpers import assert_close, random_like
from tests.model.attention.arguments import values_and_gradients, window_arguments

HEADS, SIZE = 2, 4
WINDOWS = [1, 4, 96, 128, 256]  # in one part, in one that does not divide, in two, in four
TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-2}
KEYS = [None, jax.random.key(3)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "window, device",
    [*((window, tiled.CPU) for window in WINDOWS), (128, tiled.GPU), (512, tiled.GPU)],
)
@pytest.mark.parametrize("key", KEYS, ids=["all", "dropout"])
def test_a_window_is_that_of_the_reference(window, dtype, key, device):
    attends = [
        functools.partial(tiled.attend_window, device=device),
        reference.attend_window,
    ]
    results = [
        values_and_gradients(
            functools.partial(attend, dropout_rate=0.3, dropout_key=key),
            *window_arguments(window, dtype, lanes=(2, 3), size=SIZE),
        )
        for attend in attends
    ]
    assert results[0][0].dtype == dtype
    assert_close(*results, TOLERANCES[dtype])


@pytest.mark.parametrize("device", [tiled.CPU, tiled.GPU])
@pytest.mark.parametrize("queries, keys", [(1, 7), (8, 3)])
def test_attention_without_a_bias_is_that_of_the_reference(queries, keys, device):
    shapes = [(2, 3, queries, HEADS, SIZE), *[(2, 3, keys, HEADS, SIZE)] * 2]
    arrays = random_like([jnp.zeros(shape) for shape in shapes])
    attends = [functools.partial(tiled.attend, device=device), reference.attend]
    results = [
        values_and_gradients(
            lambda q, *context, attend=attend: attend(q, KeysValues(*context)), *arrays
        )
        for attend in attends
    ]
    assert_close(*results)


@pytest.mark.parametrize("device", [tiled.CPU, tiled.GPU])
def test_a_window_in_parts_needs_less_memory_than_whole(device):
    def needed(most_parts):
        cut = device._replace(most_parts=most_parts)
        attend = functools.partial(
            tiled.attend_window, device=cut, dropout_rate=0.3, dropout_key=KEYS[1]
        )
        arguments = window_arguments(1024, lanes=(4, 1))
        compiled = values_and_gradients.lower(attend, *arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Of a tile, four parts compute 1280 of 2048 columns.
    assert needed(4) < 0.63 * needed(1)


def test_parts_of_a_window_are_equal_and_not_too_small():
    windows, rows = (1, 8, 64, 96, 128, 192, 512, 1024), (1, 8, 64, 96, 64, 64, 64, 128)
    assert tuple(tiled.rows_at_once(window, tiled.CPU) for window in windows) == rows
    assert [tiled.rows_at_once(window, tiled.GPU) for window in (256, 512, 2048)] == [128, 128, 512]
