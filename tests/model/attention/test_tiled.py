"""Attention in tiles computes what the reference computes: values, gradients, dropout."""

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
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("key", KEYS, ids=["all", "dropout"])
def test_a_window_is_that_of_the_reference(window, dtype, key):
    results = [
        values_and_gradients(
            lambda *arguments, module=module: module.attend_window(
                *arguments, dropout_rate=0.3, dropout_key=key
            ),
            *window_arguments(window, dtype, lanes=(2, 3), size=SIZE),
        )
        for module in (tiled, reference)
    ]
    assert results[0][0].dtype == dtype
    assert_close(*results, TOLERANCES[dtype])


@pytest.mark.parametrize("key", KEYS, ids=["all", "dropout"])
@pytest.mark.parametrize("queries, keys", [(1, 7), (8, 3)])
def test_attention_without_a_bias_is_that_of_the_reference(queries, keys, key):
    shapes = [(2, 3, queries, HEADS, SIZE), *[(2, 3, keys, HEADS, SIZE)] * 2]
    arrays = random_like([jnp.zeros(shape) for shape in shapes])
    results = [
        values_and_gradients(
            lambda q, *context, module=module: module.attend(
                q, KeysValues(*context), dropout_rate=0.3, dropout_key=key
            ),
            *arrays,
        )
        for module in (tiled, reference)
    ]
    assert_close(*results)


def test_a_part_holds_the_keys_its_tokens_see_and_no_others():
    assert [tiled.rows_at_once(window) for window in (1, 8, 64, 96, 128, 192, 512, 1024)] == [
        1, 8, 64, 96, 64, 64, 64, 128,
    ]  # fmt: skip
