"""Settings of every test: strict dtypes, exact products, and quick compilation."""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update(
    "jax_default_matmul_precision", "highest"
)  # an accelerator's default is not float32
jax.config.update(
    "jax_disable_most_optimizations", True
)  # the tests compile more than they compute


@pytest.fixture
def optax_mixes_integers_and_floats():
    """For tests that take optimizer steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield
