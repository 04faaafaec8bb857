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


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """A file's are up to ten thousand pieces of memory; Linux allows a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def optax_mixes_integers_and_floats():
    """For tests that take optimizer steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield
