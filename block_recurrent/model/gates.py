"""Gates of the state update (paper, section 3.2): new state from old state and an input.

A gate holds the projection that leads to it, because the LSTM gate looks at the projection's input.
Shapes: state [..., S, E] float32, input [..., S, R] -> state [..., S, E] float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.model.arguments import check_rngs, check_size, check_vectors
from block_recurrent.model.attention import apply_dense, dense

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """`x`."""
    return x


def _check_built(input_size: int, model_size: int, activation: Activation, rngs: nnx.Rngs) -> None:
    check_size("input_size", input_size)
    check_size("model_size", model_size)
    if not callable(activation):
        raise TypeError(f"activation must be a function, not {activation!r}")
    check_rngs(rngs)


def _check_called(state: Array, inputs: Array, output: nnx.Linear) -> None:
    input_size, model_size = output.kernel.shape
    check_vectors("state", state, model_size)
    check_vectors("inputs", inputs, input_size)
    if state.shape[:-1] != inputs.shape[:-1]:
        raise ValueError(
            f"inputs has shape {inputs.shape} and state {state.shape}: all axes but the last must "
            "be equal"
        )


def _gate_bias(size: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.1 * jax.random.normal(rngs.params(), (size,), jnp.float32))


class FixedGate(nnx.Module):
    """`s' = s g + z (1 - g)` with a learned constant `g = sigmoid(b)` and `z = activation(W r)`.

    Args:
      input_size: R, size of the input r.
      model_size: E, size of the state s.
      activation: of the projected input; the identity unless given.
    """

    def __init__(
        self,
        input_size: int,
        model_size: int,
        *,
        activation: Activation = identity,
        rngs: nnx.Rngs,
    ):
        _check_built(input_size, model_size, activation, rngs)
        self.activation = activation
        self.output = dense(input_size, model_size, rngs=rngs)
        self.bias = _gate_bias(model_size, rngs)

    def __call__(self, state: Array, inputs: Array) -> Array:
        """The next state; `inputs` decide the dtype of the projection."""
        _check_called(state, inputs, self.output)
        (update,) = apply_dense(inputs, self.output)
        gate = jax.nn.sigmoid(self.bias[...])
        return state * gate + self.activation(update.astype(jnp.float32)) * (1.0 - gate)


class LSTMGate(nnx.Module):
    """`s' = s f + z i`, forget and input gates computed from the input.

    `f = sigmoid(Wf r + bf + 1)`, `i = sigmoid(Wi r + bi - 1)`, `z = activation(W r)`: a fresh model
    remembers. Arguments as of `FixedGate`.
    """

    def __init__(
        self,
        input_size: int,
        model_size: int,
        *,
        activation: Activation = identity,
        rngs: nnx.Rngs,
    ):
        _check_built(input_size, model_size, activation, rngs)
        self.activation = activation
        self.output = dense(input_size, model_size, rngs=rngs)
        self.forget = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.input = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.forget_bias = _gate_bias(model_size, rngs)
        self.input_bias = _gate_bias(model_size, rngs)

    def __call__(self, state: Array, inputs: Array) -> Array:
        """The next state; `inputs` decide the dtype of the projections."""
        _check_called(state, inputs, self.output)
        projected = apply_dense(inputs, self.output, self.forget, self.input)
        update, forget, keep = (x.astype(jnp.float32) for x in projected)
        forget = jax.nn.sigmoid(forget + self.forget_bias + 1.0)
        keep = jax.nn.sigmoid(keep + self.input_bias - 1.0)
        return state * forget + self.activation(update) * keep


GATES: dict[str, type[FixedGate] | type[LSTMGate]] = {"fixed": FixedGate, "lstm": LSTMGate}
