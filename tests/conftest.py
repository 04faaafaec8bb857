"""Settings of every test: strict dtypes, exact products, and quick compilation."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update(
    "jax_default_matmul_precision", "highest"
)  # an accelerator's default is not float32
jax.config.update(
    "jax_disable_most_optimizations", True
)  # the tests compile more than they compute
