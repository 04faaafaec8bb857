"""Laws of the norm and of vectors of one length, against NumPy."""

import jax.numpy as jnp
import numpy as np

from block_recurrent.model.norm import RMSNorm, l2_normalize
from tests import reference
from tests.helpers import assert_close, random_like, randomize

X = random_like(jnp.zeros((2, 12, 6)))


def test_norm_has_no_mean_and_no_bias():
    norm = randomize(lambda rngs: RMSNorm(6))
    assert_close(norm(X), reference.rms(np.asarray(X), np.asarray(norm.scale[...])))
    assert norm(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(norm(jnp.zeros((1, 6))))


def test_l2_normalised_vectors_have_the_given_length():
    assert_close(l2_normalize(X), reference.l2_normalise(np.asarray(X)))
    scale = jnp.arange(1.0, 13.0)[:, None]
    lengths = np.linalg.norm(l2_normalize(X, scale), axis=-1)
    assert_close(lengths, np.tile(np.arange(1, 13), (2, 1)))
    assert l2_normalize(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
