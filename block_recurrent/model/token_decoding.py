"""Reading any number of tokens, and token by token, with a model whose calls do both.

Transformer-XL generates as its paper evaluates: each token sees the `memory` tokens before it,
which is more than the first ones of a training segment see after a document's start and less than
the last ones see. The vanilla Transformer sees its segment so far, the LSTM its state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.model.checks import check_token_ids
from block_recurrent.model.protocol import Baseline


@jax.jit
def _read_piece(model: Baseline, tokens: Array, state: Any) -> tuple[Array, Any]:
    """Tokens [B, N]: logits [B, V] after the last of them, and the next state."""
    features, state = model.features(tokens, state)
    return model.logits(features[:, -1:])[:, 0], state


def read(model: Baseline, state: Any, tokens: ArrayLike, name: str) -> tuple[Array, Any, None]:
    """As `generation.prefill`; the last token is read alone, as those are that are drawn."""
    tokens = check_token_ids(name, tokens, model.config.vocab_size)
    model.check_state(state, tokens.shape[0])
    last = tokens.shape[1] - 1
    begin = 0
    while begin < last:
        end = begin + model.next_length(state, last - begin)
        _, state = _read_piece(model, tokens[:, begin:end], state)
        begin = end
    logits, state = _read_piece(model, tokens[:, last:], state)
    return logits, state, None


def start_decoding(model: Baseline, state: Any, rest: None) -> Any:
    """A copy of the state: the decoding loop takes over the memory of what it is given."""
    del model, rest
    return jax.tree.map(jnp.copy, state)


def decode_token(model: Baseline, token: Array, state: Any) -> tuple[Array, Any]:
    """Reads one token [B] int32: logits [B, V] for the next one, and the next state."""
    features, state = model.features(token[:, None], state)
    return model.logits(features)[:, 0], state
