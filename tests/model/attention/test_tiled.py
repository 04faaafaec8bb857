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
    "window, in_turn", [*((window, False) for window in WINDOWS), (128, True), (256, True)]
)
@pytest.mark.parametrize("key", KEYS, ids=["all", "dropout"])
def test_a_window_is_that_of_the_reference(window, dtype, key, in_turn):
    attends = [
        functools.partial(tiled.attend_window, in_turn=in_turn),
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


@pytest.mark.parametrize("queries, keys", [(1, 7), (8, 3)])
def test_attention_without_a_bias_is_that_of_the_reference(queries, keys):
    shapes = [(2, 3, queries, HEADS, SIZE), *[(2, 3, keys, HEADS, SIZE)] * 2]
    arrays = random_like([jnp.zeros(shape) for shape in shapes])
    results = [
        values_and_gradients(
            lambda q, *context, module=module: module.attend(q, KeysValues(*context)), *arrays
        )
        for module in (tiled, reference)
    ]
    assert_close(*results)


def test_rows_in_turn_need_less_memory_than_one_tile_of_a_window():
    window = 1024
    arguments = window_arguments(window, lanes=(4, 1))
    attend = functools.partial(
        tiled.attend_window, in_turn=True, dropout_rate=0.3, dropout_key=KEYS[1]
    )
    compiled = values_and_gradients.lower(attend, *arguments).compile()
    tile = 4 * 2 * window * 2 * window * 4  # lanes, heads, queries, keys, bytes
    assert compiled.memory_analysis().temp_size_in_bytes < tile


def test_parts_of_a_window_are_equal_and_not_too_small():
    windows = (1, 8, 64, 96, 128, 192, 512, 1024)
    assert [tiled.rows_at_once(window, 8) for window in windows] == [1, 8, 64, 96, 64, 64, 64, 128]
    assert [tiled.rows_at_once(window, 16) for window in (1024, 2048)] == [64, 128]
