"""Laws of heads and of vectors of one length, against NumPy."""

import jax.numpy as jnp
import numpy as np

from block_recurrent.model.layers import l2_normalize, split_heads
from tests import reference
from tests.helpers import assert_close, assert_equal, random_like

X = random_like(jnp.zeros((2, 12, 6)))


def test_l2_normalised_vectors_have_the_given_length():
    assert_close(l2_normalize(X), reference.l2_normalise(np.asarray(X)))
    scale = jnp.arange(1.0, 13.0)[:, None]
    lengths = np.linalg.norm(l2_normalize(X, scale), axis=-1)
    assert_close(lengths, np.tile(np.arange(1, 13), (2, 1)))
    assert l2_normalize(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_heads_are_cut_from_projections_side_by_side():
    signs = np.where(np.asarray(X) > 0, 2, -2).astype(np.float32)
    unit, plain, scaled = split_heads(signs, [1.0, None, jnp.array([3.0, 5.0])], num_heads=2)
    expected = np.sign(signs).reshape(2, 12, 3, 2, 1)
    assert_close(unit, expected[:, :, 0])
    assert_equal(plain, 2 * expected[:, :, 1])
    assert_close(scaled, expected[:, :, 2] * [[3.0], [5.0]])
