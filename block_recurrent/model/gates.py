"""Gates of the state update (paper, section 3.2): new states from old ones and an input.

A gate holds the projection that leads to it, because the LSTM gate looks at the projection's input
r of size R.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Float32

from block_recurrent.model import checks
from block_recurrent.model.layers import INPUTS, apply_dense, dense

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """`x`."""
    return x


class BaseGate(nnx.Module):
    """Base of the gates, with the projection z of their input; arguments as of `FixedGate`."""

    def __init__(
        self,
        input_size: int,
        model_size: int,
        *,
        activation: Activation = identity,
        rngs: nnx.Rngs,
    ):
        checks.check_size("input_size", input_size)
        checks.check_size("model_size", model_size)
        checks.check_rngs(rngs)
        if not callable(activation):
            raise TypeError(f"activation must be a function, not {activation!r}")
        self.activation = activation
        self.output = dense(input_size, model_size, rngs=rngs)
        self._add_parameters(input_size, model_size, rngs)

    def __call__(
        self, states: Float32[Array, "... S E"], inputs: Float[Array, "... S R"]
    ) -> Float32[Array, "... S E"]:
        """The next states; the projections have the dtype of `inputs`."""
        input_size, model_size = self.output.kernel.shape
        checks.check_array("states", states, f"... {model_size}", np.floating)
        rows = " ".join(map(str, states.shape[:-1]))
        checks.check_array("inputs", inputs, f"{rows} {input_size}", np.floating)
        update, kept, added = self._project(inputs)
        return states * kept + self.activation(update) * added

    def shares(self, inputs: Float[Array, "... S R"]) -> tuple[Array, Array]:
        """The factors of the old states and of the new values: `g` and `1 - g`, or `f` and `i`."""
        _, kept, added = self._project(inputs)
        return kept, added

    def _add_parameters(self, input_size: int, model_size: int, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    def _project(self, inputs: Array) -> tuple[Array, Array, Array]:
        """The projected input before its activation, and both factors; float32."""
        raise NotImplementedError


def _gate_bias(size: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.1 * jax.random.normal(rngs.params(), (size,), jnp.float32))


class FixedGate(BaseGate):
    """`s' = s g + z (1 - g)` with a learned constant `g = sigmoid(b)` and `z = activation(W r)`.

    Args:
      input_size: R, size of the input r.
      model_size: E, size of the state s.
      activation: of the projected input; the identity unless given.
      rngs: of the initial parameters.
    """

    def _add_parameters(self, input_size: int, model_size: int, rngs: nnx.Rngs) -> None:
        self.bias = _gate_bias(model_size, rngs)

    def _project(self, inputs: Array) -> tuple[Array, Array, Array]:
        (update,) = apply_dense(inputs, self.output, shared=INPUTS)
        gate = jax.nn.sigmoid(self.bias[...])
        kept, added = (jax.lax.broadcast_to_rank(x, inputs.ndim) for x in (gate, 1.0 - gate))
        return update.astype(jnp.float32), kept, added


class LSTMGate(BaseGate):
    """`s' = s f + z i`, forget and input gates computed from the input.

    `f = sigmoid(Wf r + bf + 1)`, `i = sigmoid(Wi r + bi - 1)`, `z = activation(W r)`: a fresh model
    remembers. Arguments are those of `FixedGate`.
    """

    def _add_parameters(self, input_size: int, model_size: int, rngs: nnx.Rngs) -> None:
        self.forget = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.input = dense(input_size, model_size, rngs=rngs, scale=0.1)
        self.forget_bias = _gate_bias(model_size, rngs)
        self.input_bias = _gate_bias(model_size, rngs)

    def _project(self, inputs: Array) -> tuple[Array, Array, Array]:
        projected = apply_dense(inputs, self.output, self.forget, self.input, shared=INPUTS)
        update, forget, enter = (x.astype(jnp.float32) for x in projected)
        forget_bias, input_bias = (
            jax.lax.broadcast_to_rank(bias[...], inputs.ndim)
            for bias in (self.forget_bias, self.input_bias)
        )
        kept = jax.nn.sigmoid(forget + forget_bias + 1.0)
        return update, kept, jax.nn.sigmoid(enter + input_bias - 1.0)


Gate = FixedGate | LSTMGate
# By the values of `LayerConfig.gate`.
GATES: dict[str, type[FixedGate] | type[LSTMGate]] = {"fixed": FixedGate, "lstm": LSTMGate}
