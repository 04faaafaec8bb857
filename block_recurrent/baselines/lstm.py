"""A stack of LSTMs (Hochreiter and Schmidhuber 1997) with residual connections."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float32

from block_recurrent.baselines.base import BaselineModel
from block_recurrent.config import LSTMConfig
from block_recurrent.model.array_types import Activations, Key, Tokens
from block_recurrent.model.layers import RMSNorm, apply_dense, dense, dropout
from block_recurrent.model.stack import REMATERIALIZATIONS
from block_recurrent.model.state import stack, take
from block_recurrent.model.transformer_layer import split_key


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


def _sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x.astype(jnp.float32))


def _tanh(x: Array) -> Array:
    return jnp.tanh(x.astype(jnp.float32))


class LSTMLayer(nnx.Module):
    """`x + projection(cell(rms(x)))`, token by token; gates and state are float32."""

    def __init__(self, config: LSTMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = RMSNorm(config.model_size)
        self.cell = nnx.OptimizedLSTMCell(
            config.model_size,
            config.hidden_size,
            gate_fn=_sigmoid,
            activation_fn=_tanh,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.projection = dense(config.hidden_size, config.model_size, rngs=rngs)

    def __call__(
        self, x: Activations, state: LSTMState, dropout_key: Key | None = None
    ) -> tuple[Activations, LSTMState]:
        """The layer's output, and its next state."""

        def read(carry: tuple[Array, Array], token: Array):
            carry, hidden = self.cell(carry, token)
            return carry, hidden.astype(token.dtype)

        tokens = jnp.swapaxes(self.norm(x).astype(x.dtype), 0, 1)
        carry, hidden = jax.lax.scan(read, (state.cell, state.hidden), tokens)
        (projected,) = apply_dense(jnp.swapaxes(hidden, 0, 1), self.projection)
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
        self._rematerialize = REMATERIALIZATIONS[config.remat]

    def empty_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        config = self.config
        zeros = jnp.zeros((config.num_layers, batch_size, config.hidden_size), jnp.float32)
        return LSTMState(zeros, jnp.copy(zeros))

    def read_segment(
        self, tokens: Tokens, state: LSTMState, dropout_key: Key | None
    ) -> tuple[Activations, LSTMState]:
        """The features and the next state."""
        config = self.config
        x = self.embedding[...][tokens].astype(config.dtype)
        *keys, output_key = split_key(dropout_key, config.num_layers + 1)
        call, states = self._rematerialize(LSTMLayer.__call__, in_scan=False), []
        for index, (layer, key) in enumerate(zip(self.layers, keys, strict=True)):
            x, own = call(layer, x, take(state, index), key)
            states.append(own)
        x = dropout(self.norm(x).astype(config.dtype), config.dropout, output_key)
        return x * config.model_size**-0.5, stack(states)


def lstm_of_size(
    parameters: int,
    *,
    vocab_size: int,
    num_layers: int = LSTMConfig.num_layers,
    model_size: int = LSTMConfig.model_size,
    **others: Any,
) -> LSTMConfig:
    """The configuration whose hidden size comes nearest to a number of parameters.

    Args:
      parameters: how many there should be, without the embedding.
      vocab_size: V.
      num_layers: L.
      model_size: E.
      others: fields of `LSTMConfig`.

    Raises:
      ValueError: not even the smallest hidden size has as few.
    """

    def count(hidden: int) -> int:
        layer = 4 * hidden * (hidden + model_size + 1) + hidden * model_size + model_size
        return num_layers * layer + model_size

    if count(1) > parameters:
        raise ValueError(
            f"{num_layers} layers of model_size {model_size} and hidden_size 1 have "
            f"{count(1):,} parameters, more than {parameters:,}"
        )
    below = next(size for size in itertools.count(1) if count(size + 1) > parameters)
    hidden = min((below, below + 1), key=lambda size: abs(count(size) - parameters))
    sizes = {"num_layers": num_layers, "model_size": model_size, "hidden_size": hidden}
    return LSTMConfig(vocab_size=vocab_size, **sizes, **others)
