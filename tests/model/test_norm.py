"""Laws of the norm, against NumPy."""

import jax.numpy as jnp
import numpy as np

from block_recurrent.model.layers import RMSNorm
from tests import reference
from tests.helpers import assert_close, random_like, randomize

X = random_like(jnp.zeros((2, 12, 6)))


def test_norm_has_no_mean_and_no_bias():
    norm = randomize(lambda rngs: RMSNorm(6))
    assert_close(norm(X), reference.rms(np.asarray(X), np.asarray(norm.scale[...])))
    assert norm(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(norm(jnp.zeros((1, 6))))
