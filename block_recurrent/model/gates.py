"""Gates of the state update (paper, section 3.2): new states from old ones and an input.

A gate holds the projection that leads to it, because the LSTM gate looks at the projection's input.
Shapes: states [..., S, E] float32, input [..., S, R] -> states [..., S, E] float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.model.checks import check_gate, check_gate_call, checked
from block_recurrent.model.layers import apply_dense, dense

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """`x`."""
    return x


def _gate_bias(size: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.1 * jax.random.normal(rngs.params(), (size,), jnp.float32))


class FixedGate(nnx.Module):
    """`s' = s g + z (1 - g)` with a learned constant `g = sigmoid(b)` and `z = activation(W r)`.

    Args:
      input_size: R, size of the input r.
      model_size: E, size of the state s.
      activation: of the projected input; the identity unless given.
    """

    @checked(check_gate)
    def __init__(
        self,
        input_size: int,
        model_size: int,
        *,
        activation: Activation = identity,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.output = dense(input_size, model_size, rngs=rngs)
        self.bias = _gate_bias(model_size, rngs)

    @checked(check_gate_call)
    def __call__(self, states: Array, inputs: Array) -> Array:
        """The next states, [..., S, E] float32; `inputs` decide the dtype of the projection."""
        (update,) = apply_dense(inputs, self.output)
        kept, added = self.shares(inputs)
        return states * kept + self.activation(update.astype(jnp.float32)) * added

    def shares(self, inputs: Array) -> tuple[Array, Array]:
        """What the old states and the new values are multiplied by: `g` and `1 - g`, [E]."""
        del inputs
        gate = jax.nn.sigmoid(self.bias[...])
        return gate, 1.0 - gate


class LSTMGate(nnx.Module):
    """`s' = s f + z i`, forget and input gates computed from the input.

    `f = sigmoid(Wf r + bf + 1)`, `i = sigmoid(Wi r + bi - 1)`, `z = activation(W r)`: a fresh model
    remembers. Arguments as of `FixedGate`.
    """

    @checked(check_gate)
    def __init__(
        self,
        input_size: int,
        model_size: int,
        *,
        activation: Activation = identity,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.output = dense(input_size, model_size, rngs=rngs)
        self.forget = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.input = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.forget_bias = _gate_bias(model_size, rngs)
        self.input_bias = _gate_bias(model_size, rngs)

    @checked(check_gate_call)
    def __call__(self, states: Array, inputs: Array) -> Array:
        """The next states, [..., S, E] float32; `inputs` decide the dtype of the projections."""
        projected = apply_dense(inputs, self.output, self.forget, self.input)
        update, forget, enter = (x.astype(jnp.float32) for x in projected)
        kept, added = self._shares(forget, enter)
        return states * kept + self.activation(update) * added

    def shares(self, inputs: Array) -> tuple[Array, Array]:
        """What the old states and the new values are multiplied by: `f` and `i`, [..., S, E]."""
        projected = apply_dense(inputs, self.forget, self.input)
        forget, enter = (x.astype(jnp.float32) for x in projected)
        return self._shares(forget, enter)

    def _shares(self, forget: Array, enter: Array) -> tuple[Array, Array]:
        kept = jax.nn.sigmoid(forget + self.forget_bias + 1.0)
        return kept, jax.nn.sigmoid(enter + self.input_bias - 1.0)


Gate = FixedGate | LSTMGate
GATES: dict[str, type[FixedGate] | type[LSTMGate]] = {"fixed": FixedGate, "lstm": LSTMGate}
