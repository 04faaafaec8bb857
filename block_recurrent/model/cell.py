"""The block-recurrent cell: one block of tokens and one step of the state (paper, section 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from block_recurrent.config import LayerConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Key, States
from block_recurrent.model.gates import GATES, Gate
from block_recurrent.model.layers import (
    OUTPUTS,
    RMSNorm,
    apply_dense,
    dense,
    project_to_heads,
    relu,
)
from block_recurrent.model.state import (
    KeysValues,
    LayerState,
    add_axis,
    concatenate_windows,
    flatten_heads,
)
from block_recurrent.model.transformer_layer import SlidingWindowLayer, make_scale

Attended = Float[Array, "B S 2HD"]  # the heads of a state's attention to states and tokens
GateInputs = tuple[Gate, States, Float[Array, "B S R"]]


class Wiring(nnx.Module):
    """From the states and what they attended to, through one gate or two, to the next states."""

    def gates(self, states: States, attended: Attended) -> list[GateInputs]:
        """Each gate with the states and the input that enter it, in the order of the gates."""
        raise NotImplementedError

    def __call__(self, states: States, attended: Attended) -> States:
        """The next states, which the last gate returns."""
        gate, states, inputs = self.gates(states, attended)[-1]
        return gate(states, inputs)


class SkipWiring(Wiring):
    """`s' = gate(s, W y)`: no MLP."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        self.gate = GATES[config.gate](heads_size, config.model_size, rngs=rngs)

    def gates(self, states: States, attended: Attended) -> list[GateInputs]:
        """The gate, which reads the heads themselves."""
        return [(self.gate, states, attended)]


class SingleWiring(Wiring):
    """`s' = gate(s, tanh(W2 relu(W1 y)))`: the MLP reads the heads themselves, one gate."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.hidden = dense(heads_size, config.mlp_size, rngs=rngs)
        self.gate = gate(config.mlp_size, config.model_size, activation=jnp.tanh, rngs=rngs)

    def gates(self, states: States, attended: Attended) -> list[GateInputs]:
        """The gate, which reads the MLP's hidden layer."""
        (hidden,) = apply_dense(attended, self.hidden, shared=OUTPUTS)
        return [(self.gate, states, relu(hidden))]


class DualWiring(Wiring):
    """`u = gate1(s, W y)`, `s' = gate2(u, W2 relu(W1 rms(u)))`: gates in place of residuals."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        heads_size = 2 * config.num_heads * config.head_size
        gate = GATES[config.gate]
        self.attention_gate = gate(heads_size, config.model_size, rngs=rngs)
        self.norm = RMSNorm(config.model_size)
        self.hidden = dense(config.model_size, config.mlp_size, rngs=rngs)
        self.mlp_gate = gate(config.mlp_size, config.model_size, rngs=rngs)

    def gates(self, states: States, attended: Attended) -> list[GateInputs]:
        """The gate after attention and the one after the MLP."""
        between = self.attention_gate(states, attended)
        (hidden,) = apply_dense(
            self.norm(between).astype(attended.dtype), self.hidden, shared=OUTPUTS
        )
        return [(self.attention_gate, states, attended), (self.mlp_gate, between, relu(hidden))]


# By the values of `LayerConfig.wiring`.
WIRINGS = {"skip": SkipWiring, "single": SingleWiring, "dual": DualWiring}


class StateProjections(NamedTuple):
    """Projections of the states that enter a block.

    Attributes:
      context: keys and values [B, S, H, D], for the tokens of the block and the states.
      queries: on the states, normalised and scaled.
      token_queries: on the tokens, normalised and scaled.
    """

    context: KeysValues
    queries: Float[Array, "B S H D"]
    token_queries: Float[Array, "B S H D"]


class RecurrentCell(nnx.Module):
    """A recurrent layer's parameters and its step over one block of W tokens.

    `cell(x, state)` is `vertical` and `horizontal` together; a layer is this step scanned over the
    blocks of a segment.

    Attributes:
      token_layer: the token side, a sliding-window layer that also attends to the states.
      initial: [S, E] float32, the states at a document's start, initially N(0, 0.1²).
      ids: [S, E] float32, added to the normed states to tell them apart, initially N(0, 1).
    """

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs):
        checks.check_config(config, LayerConfig, rngs)
        size, heads_size = config.model_size, config.num_heads * config.head_size
        shape = (config.num_states, size)
        self.config = config
        self.token_layer = SlidingWindowLayer(config, attends_to_states=True, rngs=rngs)
        self.initial = nnx.Param(0.1 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.ids = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.norm = RMSNorm(size)
        self.keys = dense(size, heads_size, rngs=rngs)
        self.values = dense(size, heads_size, rngs=rngs)
        self.queries = dense(size, heads_size, rngs=rngs)
        self.token_queries = dense(size, heads_size, rngs=rngs)
        self.scale = make_scale(config)
        self.token_scale = make_scale(config)
        self.wiring = WIRINGS[config.wiring](config, rngs=rngs)

    def initial_state(self, batch_size: int) -> LayerState:
        """The state at a document's start: an empty cache and the learned states."""
        checks.check_size("batch_size", batch_size)
        cache = self.token_layer.initial_state(batch_size)
        states = jnp.broadcast_to(self.initial[...], (batch_size, *self.initial.shape))
        return LayerState(cache, states)

    def project(self, states: States) -> StateProjections:
        """Norm, ids, and keys, values and queries of the states as one product."""
        config = self.config
        checks.check_array("states", states, f"B {config.num_states} {config.model_size}")
        normed = (self.norm(states) + self.ids[...][None]).astype(config.dtype)
        layers = (self.keys, self.values, self.queries, self.token_queries)
        lengths = [1.0, None, jnp.abs(self.scale[...]), jnp.abs(self.token_scale[...])]
        projected = project_to_heads(normed, config.num_heads, *layers)
        split_heads = self.token_layer.attention.split_heads
        keys, values, *queries = split_heads(projected, lengths, config.num_heads)
        return StateProjections(KeysValues(keys, values), *queries)

    def update(
        self, states: States, projections: StateProjections, token_context: KeysValues
    ) -> States:
        """`horizontal`, given the projections of the states."""
        return self.wiring(states, self.attend(projections, token_context))

    def attend(self, projections: StateProjections, token_context: KeysValues) -> Attended:
        """The states attend to themselves and to the tokens."""
        attend = self.token_layer.attention.attend
        own = attend(projections.queries, projections.context)
        read = attend(projections.token_queries, token_context)
        return jnp.concatenate([flatten_heads(own), flatten_heads(read)], axis=-1)

    def horizontal(self, states: States, token_context: KeysValues) -> States:
        """States to next states.

        Args:
          states: as they enter the block.
          token_context: keys and values of the previous and the current block, [B, 2W, H, D].

        Returns:
          The states that enter the next block.

        Raises:
          TypeError: an argument of another kind.
          ValueError: shapes that do not fit one another or the configuration.
        """
        config = self.config
        shape = f"{len(states)} {2 * config.window} {config.num_heads} {config.head_size}"
        checks.check_keys_values("token_context", token_context, shape)
        return self.update(states, self.project(states), token_context)

    def vertical(
        self, x: Float[Array, "B W E"], state: LayerState, *, dropout_key: Key | None = None
    ) -> tuple[Float[Array, "B W E"], KeysValues]:
        """Tokens to tokens: they see the window before them and the states entering the block.

        Args:
          x: one block.
          state: cache and states as they enter the block.
          dropout_key: dropout is on when given.

        Returns:
          The output, and the keys and values of the block, [B, W, H, D].

        Raises:
          TypeError: an argument of another kind.
          ValueError: more than one block, or shapes that do not fit the configuration.
        """
        self._check(x, state, dropout_key)
        state_context = add_axis(self.project(state.recurrent).context, 1)
        return self.token_layer(x, state.cache, state_context, dropout_key=dropout_key)

    def __call__(
        self, x: Float[Array, "B W E"], state: LayerState, *, dropout_key: Key | None = None
    ) -> tuple[Float[Array, "B W E"], LayerState]:
        """One block in both directions: the output, and the next state.

        Arguments and errors are those of `vertical`.
        """
        self._check(x, state, dropout_key)
        projections = self.project(state.recurrent)
        state_context = add_axis(projections.context, 1)
        y, context = self.token_layer(x, state.cache, state_context, dropout_key=dropout_key)
        token_context = concatenate_windows(state.cache, context)
        states = self.update(state.recurrent, projections, token_context)
        return y, LayerState(context, states)

    def _check(self, x: Array, state: LayerState, dropout_key: Key | None) -> None:
        checks.check_layer_call(self, x, state, dropout_key)
        if x.shape[1] != self.config.window:
            raise ValueError(
                f"a cell reads one block of {self.config.window} tokens, not {x.shape[1]}; "
                "BlockRecurrentLayer reads whole segments"
            )
