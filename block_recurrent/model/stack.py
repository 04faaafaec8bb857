"""The stack of layers: Transformer-XL, sliding-window and recurrent models alike."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.attention import KeysValues
from block_recurrent.model.cell import RecurrentCell
from block_recurrent.model.checks import check_batch_size
from block_recurrent.model.feedback import run_with_feedback
from block_recurrent.model.groups import Group, GroupState, Span, group_layers, run_group
from block_recurrent.model.recurrent import BlockRecurrentLayer
from block_recurrent.model.sliding_window import SlidingWindowLayer
from block_recurrent.model.state import LayerState, ModelState, empty_cache


class Stack(nnx.Module):
    """All layers between the embedding and the final norm.

    Attributes:
      spans: which layers each group holds.
      groups: bottom up; a plain group has a leading axis of layers on every parameter.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.spans = group_layers(config)
        self.groups = nnx.List([self._make_group(span, rngs) for span in self.spans])

    def _make_group(self, span: Span, rngs: nnx.Rngs) -> Group:
        config = self.config
        if span.recurrent:
            return BlockRecurrentLayer(config, unroll=config.state_unroll, rngs=rngs)

        def make_layer(key: Array) -> SlidingWindowLayer:
            layer_rngs = nnx.Rngs(key)
            return SlidingWindowLayer(config, attends_to_states=config.feedback, rngs=layer_rngs)

        return jax.vmap(make_layer)(jax.random.split(rngs.params(), span.stop - span.start))

    @property
    def cells(self) -> list[RecurrentCell]:
        """The recurrent cells, lowest first."""
        return [group.cell for group in self.groups if isinstance(group, BlockRecurrentLayer)]

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start for `batch_size` rows."""
        check_batch_size(batch_size)
        config = self.config
        shape = (config.num_layers, batch_size, config.window, config.num_heads, config.head_size)
        recurrent = jnp.zeros((0, batch_size, config.num_states, config.model_size), jnp.float32)
        if self.cells:
            initial = jnp.stack([cell.initial[...] for cell in self.cells])[:, None]
            rows = (initial.shape[0], batch_size, *initial.shape[2:])
            recurrent = jnp.broadcast_to(initial, rows)
        return ModelState(empty_cache(shape, config.dtype), recurrent)

    def split_state(self, state: ModelState) -> list[GroupState]:
        """The part of the state that belongs to each group."""
        parts: list[GroupState] = []
        recurrent = iter(state.recurrent)
        for span in self.spans:
            caches = jax.tree.map(lambda x, span=span: x[span.start : span.stop], state.cache)
            if span.recurrent:
                cache = jax.tree.map(lambda x: x[0], caches)
                parts.append(LayerState(cache, next(recurrent)))
            else:
                parts.append(caches)
        return parts

    def join_state(self, parts: list[GroupState], recurrent: Array) -> ModelState:
        """Inverse of `split_state`; `recurrent` is returned as it is if no group is recurrent."""
        caches, states = [], []
        for part in parts:
            if isinstance(part, LayerState):
                caches.append(jax.tree.map(lambda x: x[None], part.cache))
                states.append(part.recurrent)
            else:
                caches.append(part)
        cache = jax.tree.map(lambda *xs: jnp.concatenate(xs), *caches)
        return ModelState(cache, jnp.stack(states) if states else recurrent)

    def split_keys(self, key: Array | None) -> list[Array | None]:
        """Dropout keys for each group, one a layer, or Nones."""
        if key is None:
            return [None] * len(self.spans)
        keys = jax.random.split(key, self.config.num_layers)
        return [keys[span.start : span.stop] for span in self.spans]

    def __call__(
        self, x: Array, state: ModelState, *, dropout_key: Array | None = None
    ) -> tuple[Array, ModelState]:
        """Reads a segment: x [B, N, E] -> output [B, N, E] and the state for the next segment."""
        parts, keys = self.split_state(state), self.split_keys(dropout_key)
        if self.config.feedback:
            x, parts = run_with_feedback(self.config, self.groups, x, parts, keys)
        else:
            for index, group in enumerate(self.groups):
                x, parts[index] = run_group(self.config, group, x, parts[index], keys=keys[index])
        return x, self.join_state(parts, state.recurrent)

    def step(
        self, x: Array, visible: KeysValues, states: list[KeysValues]
    ) -> tuple[Array, KeysValues]:
        """Reads one token.

        Args:
          x: [B, 1, E].
          visible: keys and values of the W tokens before it in every layer, [L, B, W, H, D].
          states: of each recurrent layer, keys and values of the states that entered the token's
            block, [B, 1, S, H, D].

        Returns:
          Output [B, 1, E], and the token's keys and values in every layer, [L, B, 1, H, D].
        """
        own = iter(states)
        feedback = states[-1] if self.config.feedback else None
        currents = []
        for group, span in zip(self.groups, self.spans, strict=True):
            context = jax.tree.map(lambda y, span=span: y[span.start : span.stop], visible)
            if isinstance(group, BlockRecurrentLayer):
                context = jax.tree.map(lambda y: y[0], context)
                x, current = group.cell.tokens.step(x, context, next(own))
                current = jax.tree.map(lambda y: y[None], current)
            else:
                x, current = jax.lax.scan(
                    lambda x, inputs: inputs[0].step(x, inputs[1], feedback), x, (group, context)
                )
            currents.append(current)
        return x, jax.tree.map(lambda *ys: jnp.concatenate(ys), *currents)
