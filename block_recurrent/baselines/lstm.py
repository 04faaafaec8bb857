"""A stack of LSTMs (Hochreiter and Schmidhuber 1997) with residual connections."""

import dataclasses
import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float32

from block_recurrent.baselines.base import BaselineModel
from block_recurrent.config import LSTMConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Key, Lengths, Tokens
from block_recurrent.model.layers import RMSNorm, apply_dense, dense, dropout, split_key
from block_recurrent.model.rematerialization import rematerialize
from block_recurrent.model.state import stack, take


class LSTMState(NamedTuple):
    """Carried by the LSTM, or, without the axis L, by one of its layers; U units."""

    cell: Float32[Array, "L B U"]
    hidden: Float32[Array, "L B U"]

    @property
    def batch_size(self) -> int:
        """B."""
        return self.cell.shape[1]

    @property
    def axes(self) -> "LSTMState":
        """The letters of every array's axes."""
        return LSTMState("LBU", "LBU")  # type: ignore[arg-type]


class LSTMLayer(nnx.Module):
    """`x + projection(cell(rms(x)))`, token by token; gates and state are float32."""

    def __init__(self, config: LSTMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = RMSNorm(config.model_size)
        self.cell = nnx.OptimizedLSTMCell(
            config.model_size,
            config.hidden_size,
            gate_fn=lambda x: jax.nn.sigmoid(x.astype(jnp.float32)),
            activation_fn=lambda x: jnp.tanh(x.astype(jnp.float32)),
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.projection = dense(config.hidden_size, config.model_size, rngs=rngs)

    def __call__(
        self,
        x: Activations,
        state: LSTMState,
        dropout_key: Key | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, LSTMState]:
        """The layer's output, and its next state: in each row that after its `lengths`."""

        def read(carry: tuple[Array, Array], inputs: tuple[Array, Array]):
            token, number = inputs
            after, hidden = self.cell(carry, token)
            if lengths is not None:
                real = number < lengths[:, None]
                after = jax.tree.map(partial(jnp.where, real), after, carry)
            return after, hidden.astype(token.dtype)

        tokens = jnp.swapaxes(self.norm(x).astype(x.dtype), 0, 1)
        inputs = (tokens, jnp.arange(len(tokens)))
        carry, hidden = jax.lax.scan(read, (state.cell, state.hidden), inputs)
        (projected,) = apply_dense(jnp.swapaxes(hidden, 0, 1), self.projection, shared=None)
        return x + dropout(projected, self.config.dropout, dropout_key), LSTMState(*carry)


class LSTM(BaselineModel):
    """A language model of LSTM layers; embedding, final norm and output as in `LanguageModel`.

    Splitting a document into calls anywhere gives the same logits.

    Args:
      config: sizes.
      rngs: of the initial parameters.

    Example:
      >>> model = LSTM(config, rngs=nnx.Rngs(0))
      >>> logits, state = model(tokens, model.initial_state(batch_size=2))
    """

    kind = LSTMConfig

    def __init__(self, config: LSTMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        shape = (config.vocab_size, config.model_size)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.layers = nnx.List([LSTMLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.model_size)

    def initial_state(self, batch_size: int) -> LSTMState:
        """The state at a document's start: zeros."""
        checks.check_size("batch_size", batch_size)
        shape = (self.config.num_layers, batch_size, self.config.hidden_size)
        return LSTMState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def read_segment(
        self,
        tokens: Tokens,
        state: LSTMState,
        dropout_key: Key | None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, LSTMState]:
        """The features and the next state."""
        config = self.config
        x = self.embedding[...][tokens].astype(config.dtype)
        *keys, output_key = split_key(dropout_key, config.num_layers + 1)
        call, states = rematerialize(LSTMLayer.__call__, config.remat), []
        for index, (layer, key) in enumerate(zip(self.layers, keys, strict=True)):
            x, own = call(layer, x, take(state, index), key, lengths)
            states.append(own)
        x = dropout(self.norm(x).astype(config.dtype), config.dropout, output_key)
        return x * config.model_size**-0.5, stack(states)


def lstm_of_size(parameters: int, **fields: Any) -> LSTMConfig:
    """The configuration whose hidden size comes nearest to a number of parameters.

    Args:
      parameters: how many there should be, without the embedding.
      fields: of `LSTMConfig`, without its `hidden_size`.

    Raises:
      ValueError: even the smallest hidden size has more.
    """
    config = LSTMConfig(**fields)
    model_size = config.model_size

    def count(hidden: int) -> int:
        layer = 4 * hidden * (hidden + model_size + 1) + hidden * model_size + model_size
        return config.num_layers * layer + model_size

    if count(1) > parameters:
        raise ValueError(
            f"{config.num_layers} layers of model_size {model_size} and hidden_size 1 have "
            f"{count(1):,} parameters, more than {parameters:,}"
        )
    below = next(size for size in itertools.count(1) if count(size + 1) > parameters)
    nearest = min((below, below + 1), key=lambda size: abs(count(size) - parameters))
    return dataclasses.replace(config, hidden_size=nearest)
