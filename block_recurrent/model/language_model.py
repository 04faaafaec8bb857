"""The language model: embedding, stack of layers, final norm and tied output."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from block_recurrent.config import ModelConfig
from block_recurrent.model import checks
from block_recurrent.model.array_types import Activations, Key, Lengths, Logits, Starts, Tokens
from block_recurrent.model.feedback import FeedbackStack
from block_recurrent.model.layers import RMSNorm, dropout, split_key
from block_recurrent.model.stack import Stack
from block_recurrent.model.state import (
    ModelState,
    join_blocks,
    reset,
    split_blocks,
    swap_blocks_and_batch,
)
from block_recurrent.parallel.axes import replicate, shard_batch


class BaseLanguageModel(nnx.Module):
    """What all language models share, ours and the baselines; a subclass adds the methods below.

    Attributes:
      config: what the model was built from.
      embedding: [V, E] float32, of tokens coming in and going out.
    """

    config: Any
    embedding: nnx.Param

    def initial_state(self, batch_size: int) -> Any:
        """The state at a document's start."""
        raise NotImplementedError

    def read_segment(
        self, tokens: Tokens, state: Any, dropout_key: Key | None, lengths: Lengths | None = None
    ) -> tuple[Activations, Any]:
        """The features of a segment and the next state, of arguments that have been checked."""
        raise NotImplementedError

    def __call__(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Logits, Any]:
        """Reads a segment of every row's document.

        Args:
          tokens: integers in [0, V). N is any multiple of W, and splitting a document into calls in
            any such way gives the same logits; baselines say which N they read.
          state: from `initial_state`, or from the call before.
          start_of_document: the rows that begin a document with this segment; their state is
            replaced by the initial one. None for no row.
          dropout_key: dropout is on when given.
          lengths: how many tokens of each row are real, from 0 to N; the others, padding, come
            after them. Logits and states are then those of each row read alone, and the logits of
            padding mean nothing. Here lengths are multiples of W, and blocks are read one after the
            other; `prefill` reads rows of any length. None for rows without padding.

        Returns:
          Logits, those at position p for the token at p + 1; and the state for the next segment.

        Raises:
          TypeError: tokens that are no integers, or another argument of another kind.
          ValueError: shapes that do not fit one another or the configuration.
        """
        features, state = self.features(
            tokens,
            state,
            start_of_document=start_of_document,
            dropout_key=dropout_key,
            lengths=lengths,
        )
        return self.logits(features), state

    def features(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, Any]:
        """Everything before the last product, which `logits` computes, for all N or for a part.

        Takes the arguments of a call, returns the same state, and raises the same errors.
        """
        vocab_size = self.config.vocab_size
        checks.check_model_call(tokens, start_of_document, dropout_key, lengths, vocab_size)
        self.check_state(state, tokens.shape[0])
        if start_of_document is not None:
            state = reset(state, self.start_like(state), start_of_document, batch_axis=1)
        return self.read_segment(tokens, state, dropout_key, lengths)

    def logits(self, features: Activations) -> Logits:
        """The logits of the next token at each position."""
        return tied_logits(features, self.embedding[...].astype(self.config.dtype))

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        checks.check_state(self, state, batch_size)

    def start_like(self, state: Any) -> Any:
        """The state at a document's start, in the shapes of `state`."""
        return self.initial_state(state.batch_size)


class LanguageModel(BaseLanguageModel):
    """Block-Recurrent Transformer, or, without recurrent layers, Transformer-XL or Slide.

    The module holds parameters and its configuration and nothing else; it is a pytree, so that
    `jax.jit`, `jax.grad` and the rest apply to it directly.

    Args:
      config: sizes and kinds of the layers.
      rngs: of the initial parameters.

    Example:
      >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
      >>> state = model.initial_state(batch_size=2)
      >>> logits, state = model(tokens, state)
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        checks.check_config(config, ModelConfig, rngs)
        shape = (config.vocab_size, config.model_size)
        self.config = config
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.stack = (FeedbackStack if config.feedback else Stack)(config, rngs=rngs)
        self.norm = RMSNorm(config.model_size)

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at a document's start: empty caches and the learned recurrent states."""
        checks.check_size("batch_size", batch_size)
        return self.stack.initial_state(batch_size)

    def read_segment(
        self,
        tokens: Tokens,
        state: ModelState,
        dropout_key: Key | None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, ModelState]:
        """The features of a segment and the next state, of arguments that have been checked."""
        checks.check_length(tokens.shape[1], self.config.window)
        if lengths is not None:
            return self._read_rows(tokens, state, dropout_key, lengths)
        stack_key, logits_key = split_key(dropout_key, 2)
        x, state = self.stack(self.embed(tokens), state, dropout_key=stack_key)
        return self.normalize(x, logits_key), state

    def _read_rows(
        self, tokens: Tokens, state: ModelState, dropout_key: Key | None, lengths: Lengths
    ) -> tuple[Activations, ModelState]:
        """Reads block after block; the rows that have ended keep their state."""
        window = self.config.window
        checks.check_lengths(lengths, tokens.shape, unit=window)

        def read(state: ModelState, inputs: tuple[Tokens, Array]) -> tuple[ModelState, Array]:
            block, number = inputs
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            features, after = self.read_segment(block, state, key)
            ended = lengths < (number + 1) * window
            return reset(after, state, ended, batch_axis=1), features

        blocks = swap_blocks_and_batch(split_blocks(tokens, window))
        state, features = jax.lax.scan(read, state, (blocks, jnp.arange(len(blocks))))
        return join_blocks(swap_blocks_and_batch(features)), state

    def embed(self, tokens: Tokens) -> Activations:
        """The embeddings of the tokens, in the dtype of activations."""
        return shard_batch(replicate(self.embedding[...])[tokens].astype(self.config.dtype))

    def normalize(self, x: Activations, dropout_key: Key | None = None) -> Activations:
        """The features, from the output of the last layer."""
        config = self.config
        x = dropout(self.norm(x).astype(config.dtype), config.dropout, dropout_key)
        return x * config.model_size**-0.5


def tied_logits(features: Activations, embedding: Float[Array, "V E"]) -> Logits:
    """Products of the features with the embedding, both of one dtype."""
    return jnp.einsum("bne,ve->bnv", features, embedding, preferred_element_type=jnp.float32)
