"""Laws of attention, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent.model.attention.reference import attend
from block_recurrent.model.state import KeysValues
from tests import reference
from tests.helpers import assert_close, assert_equal, random_like


def test_attention_is_a_softmax_over_visible_keys():
    queries, keys, values, bias = random_like(
        [jnp.zeros((2, 3, 2, 4)), *[jnp.zeros((2, 5, 2, 4))] * 2, jnp.zeros((2, 3, 5))]
    )
    visible = np.random.default_rng(0).random((3, 5)) < 0.6
    visible[:, 0] = True
    masked = jnp.where(visible, bias, -jnp.inf)
    heads = attend(queries, KeysValues(keys, values), masked)
    arrays = [np.asarray(x, np.float64) for x in (queries, keys, values)]
    expected = reference.attend(*arrays, np.ones(2), np.asarray(bias), visible)
    assert_close(heads.reshape(2, 3, 8), expected)


def test_attention_weights_are_never_rounded_before_the_softmax():
    """Logits of 300 +- 0.5 are one number in bfloat16."""
    queries = jnp.full((1, 1, 1), 300, jnp.bfloat16)
    keys = jnp.ones((2, 1, 1), jnp.bfloat16)
    values = jnp.array([0, 1], jnp.bfloat16).reshape(2, 1, 1)
    bias = jnp.array([[[-0.5, 0.5]]])
    heads = attend(queries, KeysValues(keys, values), bias)
    assert heads.dtype == jnp.bfloat16
    assert_close(heads.astype(jnp.float32), jax.nn.sigmoid(jnp.ones((1, 1, 1))), 4e-3)


def test_dropout_of_attention_falls_on_the_probabilities():
    queries, keys, values = random_like([jnp.zeros((50, 1, 4))] * 3)
    dropped = attend(
        queries,
        KeysValues(keys, jnp.ones_like(values)),
        dropout_rate=0.5,
        dropout_key=jax.random.key(0),
    )
    assert len(np.unique(dropped[:, 0, 0])) == 50
    assert_equal(dropped, jnp.broadcast_to(dropped[..., :1], dropped.shape))
    assert abs(np.mean(dropped) - 1) < 0.1
