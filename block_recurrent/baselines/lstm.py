"""A stack of LSTMs (Hochreiter and Schmidhuber 1997) with residual connections."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.config import LSTMConfig
from block_recurrent.model.checks import (
    check_baseline,
    check_baseline_call,
    check_flat_state,
    check_initial_state,
    checked,
)
from block_recurrent.model.language_model import tied_logits
from block_recurrent.model.layers import RMSNorm, apply_dense, dense, dropout
from block_recurrent.model.protocol import power_of_two
from block_recurrent.model.stack import REMATERIALIZATIONS
from block_recurrent.model.state import reset_to_zeros, stack, take
from block_recurrent.model.transformer_layer import split_key


class LSTMState(NamedTuple):
    """Carried by the LSTM, or, without the leading axis, by one of its layers.

    Attributes:
      cell: [L, B, hidden size] float32.
      hidden: [L, B, hidden size] float32.
    """

    cell: Array
    hidden: Array

    @property
    def batch_size(self) -> int:
        """B."""
        return self.cell.shape[1]


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
        self, x: Array, state: LSTMState, dropout_key: Array | None = None
    ) -> tuple[Array, LSTMState]:
        """x [B, N, E] and the layer's state -> [B, N, E] and the next state."""

        def read(carry: tuple[Array, Array], token: Array):
            carry, hidden = self.cell(carry, token)
            return carry, hidden.astype(token.dtype)

        tokens = jnp.swapaxes(self.norm(x).astype(x.dtype), 0, 1)
        carry, hidden = jax.lax.scan(read, (state.cell, state.hidden), tokens)
        (projected,) = apply_dense(jnp.swapaxes(hidden, 0, 1), self.projection)
        return x + dropout(projected, self.config.dropout, dropout_key), LSTMState(*carry)


class LSTM(nnx.Module):
    """A language model of LSTM layers; embedding, final norm and output as in `LanguageModel`.

    Splitting a document into calls anywhere gives the same logits.

    Args:
      config: sizes.
      rngs: of the initial parameters.

    Example:
      >>> model = LSTM(config, rngs=nnx.Rngs(0))
      >>> logits, state = model(tokens, model.initial_state(batch_size=2))
    """

    @checked(check_baseline(LSTMConfig))
    def __init__(self, config: LSTMConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.model_size)
        self.config = config
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.layers = nnx.List([LSTMLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.model_size)
        self._rematerialize = REMATERIALIZATIONS[config.remat]

    @checked(check_initial_state)
    def initial_state(self, batch_size: int) -> LSTMState:
        """The state at a document's start: zeros."""
        config = self.config
        zeros = jnp.zeros((config.num_layers, batch_size, config.hidden_size), jnp.float32)
        return LSTMState(zeros, jnp.copy(zeros))

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        check_flat_state(state, jax.eval_shape(partial(self.initial_state, batch_size)))

    def __call__(
        self,
        tokens: Array | np.ndarray,
        state: LSTMState,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """Reads tokens [B, N] of every row's document; arguments and results of `Model`."""
        features, state = self.features(
            tokens, state, start_of_document=start_of_document, dropout_key=dropout_key
        )
        return self.logits(features), state

    @checked(check_baseline_call)
    def features(
        self,
        tokens: Array | np.ndarray,
        state: LSTMState,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, LSTMState]:
        """All but the last product of a call, whose arguments it takes, N any number."""
        config, state = self.config, reset_to_zeros(state, start_of_document)
        x = self.embedding[...][tokens].astype(config.dtype)
        *keys, output_key = split_key(dropout_key, config.num_layers + 1)
        call, states = self._rematerialize(LSTMLayer.__call__, in_scan=False), []
        for index, (layer, key) in enumerate(zip(self.layers, keys, strict=True)):
            x, own = call(layer, x, take(state, index), key)
            states.append(own)
        x = dropout(self.norm(x).astype(config.dtype), config.dropout, output_key)
        return x * config.model_size**-0.5, stack(states)

    def logits(self, features: Array) -> Array:
        """[B, N, E] -> [B, N, V] float32."""
        return tied_logits(features, self.embedding[...].astype(self.config.dtype))

    def next_length(self, state: LSTMState, available: int) -> int:
        """A power of two, at most 512."""
        del state
        return power_of_two(available)


def lstm_of_size(
    parameters: int,
    *,
    vocab_size: int,
    num_layers: int = LSTMConfig.num_layers,
    model_size: int = LSTMConfig.model_size,
    multiple: int = 1,
    **others: Any,
) -> LSTMConfig:
    """The configuration whose hidden size comes nearest to a number of parameters.

    Args:
      parameters: how many there should be, without the embedding.
      vocab_size: V.
      num_layers: L.
      model_size: E.
      multiple: of which the hidden size is to be one.
      others: fields of `LSTMConfig`.

    Raises:
      ValueError: not even the smallest hidden size has as few.
    """

    def count(hidden: int) -> int:
        layer = 4 * hidden * (hidden + model_size + 1) + hidden * model_size + model_size
        return num_layers * layer + model_size

    if count(multiple) > parameters:
        raise ValueError(
            f"{num_layers} layers of model_size {model_size} and hidden_size {multiple} have "
            f"{count(multiple):,} parameters, more than {parameters:,}"
        )
    # count(H) = parameters is 4 H² + (5 E + 4) H + E - (parameters - E) / L = 0.
    half = (5 * model_size + 4) / 8
    constant = (model_size - (parameters - model_size) / num_layers) / 4
    root = math.sqrt(half**2 - constant) - half
    below = max(int(root / multiple), 1) * multiple
    hidden = min((below, below + multiple), key=lambda size: abs(count(size) - parameters))
    sizes = {"num_layers": num_layers, "model_size": model_size, "hidden_size": hidden}
    return LSTMConfig(vocab_size=vocab_size, **sizes, **others)
