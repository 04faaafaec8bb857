"""Dense layers, several of them as one matrix product."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def dense(input_size: int, output_size: int, *, rngs: nnx.Rngs, scale: float = 1.0) -> nnx.Linear:
    """A float32 kernel [in, out] without bias, truncated normal of variance `scale / in`."""
    initializer = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nnx.Linear(input_size, output_size, use_bias=False, kernel_init=initializer, rngs=rngs)


def apply_dense(x: Array, *layers: nnx.Linear) -> list[Array]:
    """Each of `layers` applied to `x` [..., in], as one matrix product in the dtype of `x`."""
    boundaries = list(itertools.accumulate(layer.kernel.shape[1] for layer in layers))
    return jnp.split(apply_side_by_side(x, *layers), boundaries[:-1], axis=-1)


def apply_side_by_side(x: Array, *layers: nnx.Linear) -> Array:
    """As `apply_dense`, the outputs one after the other in the last axis."""
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    return product(x, kernel.astype(x.dtype))


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """`x` [..., in] times `kernel` [in, out].

    As `x @ kernel`, but the gradient of the kernel is laid out with its shorter side first: the
    other way round XLA:CPU takes twice as long.
    """
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.shape[-1] <= kernel.shape[1]:
        of_kernel = inputs.T @ outputs
    else:  # the barrier keeps XLA from turning it round again
        of_kernel = jax.lax.optimization_barrier(outputs.T @ inputs).T
    return gradient @ kernel.T, of_kernel


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """The larger of `x` and 0.

    As `jax.nn.relu`, but its gradient needs the output alone, and no mask: a TPU's compiler writes
    one to memory, which takes as long as a matrix product.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    return (gradient * jnp.sign(y),)


relu.defvjp(_relu_forward, _relu_backward)
