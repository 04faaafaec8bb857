"""What NVIDIA's library is given is what the reference computes; the library itself needs a GPU."""

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.model.attention import cudnn, reference
from tests.helpers import assert_close
from tests.model.attention.arguments import values_and_gradients, window_arguments

TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-2}


@pytest.fixture(autouse=True)
def without_the_library(monkeypatch):
    """JAX's function takes the same arguments, but computes on a CPU."""
    attention = jax.nn.dot_product_attention

    def on_a_cpu(*arguments, implementation, **options):
        assert implementation == "cudnn"
        return attention(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_a_cpu)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_blocks_bias_and_mask_say_what_the_reference_says(dtype):
    arguments = window_arguments(16, dtype, lanes=(2, 3))
    with jax.numpy_dtype_promotion("standard"):  # JAX's function mixes dtypes
        actual = values_and_gradients(cudnn.attend_window, *arguments)
    expected = values_and_gradients(reference.attend_window, *arguments)
    assert actual[0].dtype == dtype
    assert_close(actual, expected, TOLERANCES[dtype])


def test_attention_to_states_is_that_of_the_reference():
    queries, context, *_ = window_arguments(16, "float32", lanes=(2, 3))
    expected = values_and_gradients(reference.attend, queries, context)
    assert_close(values_and_gradients(cudnn.attend, queries, context), expected)
    assert_close(
        cudnn.attend(queries[:, :, :1], context), reference.attend(queries[:, :, :1], context)
    )


def test_the_bias_is_of_the_dtype_of_the_queries_and_finite():
    *_, bias = window_arguments(16, "bfloat16", lanes=(2, 3))
    folded = cudnn.make_bias(bias, jnp.dtype("bfloat16"))
    assert folded.shape == (1, 2, 16, 32)
    assert folded.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(folded).all())
    assert int((folded > cudnn.HIDDEN / 2).sum()) == 2 * 16 * 16
