"""Laws of dense layers and of dropout."""

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.model.layers import apply_dense, dense, product, relu
from tests.helpers import assert_close, random_like, randomize

X = random_like(jnp.zeros((2, 12, 6)))


def test_dense_layers_together_are_each_alone():
    layers = [randomize(lambda rngs, size=size: dense(6, size, rngs=rngs)) for size in (3, 1, 5)]
    assert_close(apply_dense(X, *layers), [X @ layer.kernel[...] for layer in layers])
    (low,) = apply_dense(X.astype(jnp.bfloat16), layers[0])
    assert low.dtype == jnp.bfloat16


def test_a_relu_and_its_gradient_are_those_of_plain_jax():
    x = jnp.concatenate([X, jnp.zeros_like(X)])

    def gradient(function):
        return jax.grad(lambda x: jnp.sum(jnp.sin(function(x) + 1)))(x)

    assert_close((relu(x), gradient(relu)), (jax.nn.relu(x), gradient(jax.nn.relu)), 0)


@pytest.mark.parametrize("size", [3, 6, 11])
def test_gradients_of_a_product_are_those_of_plain_jax(size):
    kernel, weights = random_like([jnp.zeros((6, size)), jnp.zeros((2, 12, size))])

    def gradients(multiply):
        return jax.grad(lambda x, kernel: jnp.sum(multiply(x, kernel) * weights), (0, 1))(X, kernel)

    assert_close(gradients(product), gradients(jnp.matmul))
