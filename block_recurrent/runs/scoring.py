"""Scoring given texts: how likely a trained model finds them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.data import Tokenizer
from block_recurrent.data.documents import replace_lone_surrogates
from block_recurrent.model import checks
from block_recurrent.model.decoding import pad_rows
from block_recurrent.model.protocol import CarriedState, Model
from block_recurrent.model.state import clear_recurrent
from block_recurrent.runs.trained import TrainedModel
from block_recurrent.training.loss import target_nats


class Score(NamedTuple):
    """How a model finds a text.

    Attributes:
      log_likelihood: natural logarithm of the text's probability, given its context.
      greedy: whether each token was the likeliest one.
      tokens: how many tokens were scored.
      bytes: UTF-8 bytes of the text.
    """

    log_likelihood: float
    greedy: bool
    tokens: int
    bytes: int


class _Row(NamedTuple):
    """A text and its context, as tokens."""

    tokens: np.ndarray  # [n] int32, the first one begins the document
    first: int  # index of the first token that is scored
    bytes: int  # of the text


def score(
    trained: TrainedModel,
    texts: Sequence[str | tuple[str, str]],
    *,
    batch_size: int | None = None,
) -> list[Score]:
    """Scores texts, each as the start of a document or after a context that starts one.

    A text of any length is read as in evaluation, segment by segment with the state carried.
    Context and text are tokenized together. The first token scored is the first one in which they
    differ from the context alone.

    Args:
      trained: from `br.load`.
      texts: texts, or pairs of a context and a text.
      batch_size: how many are read side by side; `data.batch_size` unless given. The scores depend
        on it within rounding.

    Returns:
      The scores, in the order of the texts.

    Raises:
      TypeError: something else than texts and pairs of texts.
      ValueError: `batch_size` is below 1.
    """
    model, config, tokenizer = trained.model, trained.config, trained.tokenizer
    size = config.data.batch_size if batch_size is None else batch_size
    checks.check_size("batch_size", size)
    rows = [_make_row(text, tokenizer) for text in texts]
    # Texts of nearly equal length side by side need the least padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].tokens))
    scores: dict[int, Score] = {}
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        found = _score_rows(model, config, [rows[index] for index in some])
        scores |= zip(some, found, strict=True)
    return [scores[index] for index in range(len(rows))]


def _make_row(text: str | tuple[str, str], tokenizer: Tokenizer) -> _Row:
    pair = ("", text) if isinstance(text, str) else text
    if not (isinstance(pair, tuple | list) and list(map(type, pair)) == [str, str]):
        raise TypeError(f"texts must be strings or pairs of context and text, not {text!r}")
    context, text = (replace_lone_surrogates(part)[0] for part in pair)
    alone, both = tokenizer.encode(context), tokenizer.encode(context + text)
    shortest = min(len(alone), len(both))
    same = np.append(alone[:shortest] == both[:shortest], False)
    tokens = np.concatenate([[tokenizer.beginning_of_document], both]).astype(np.int32)
    return _Row(tokens, 1 + int(same.argmin()), len(text.encode()))


def _score_rows(model: Model, config: ExperimentConfig, rows: Sequence[_Row]) -> list[Score]:
    """Reads rows side by side and adds up what counts of each."""
    ends = np.array([len(row.tokens) for row in rows])
    firsts = np.array([row.first for row in rows])
    length = _segment_length(config, ends.max() - 1)
    segments = -(-(ends.max() - 1) // length)
    tokens = pad_rows([row.tokens for row in rows], segments * length + 1)
    places = np.arange(tokens.shape[1])[None]
    counts = (firsts[:, None] <= places) & (places < ends[:, None])
    state = model.initial_state(len(rows))
    nats, greedy = np.zeros(len(rows)), np.ones(len(rows), bool)
    for begin in range(0, segments * length, length):
        inputs, targets = slice(begin, begin + length), slice(begin + 1, begin + length + 1)
        state, more, likeliest = _score_segment(
            model,
            state,
            tokens[:, inputs],
            tokens[:, targets],
            counts[:, targets],
            clear_states=config.training.clear_states,
        )
        nats, greedy = nats + np.asarray(more), greedy & np.asarray(likeliest)
    return [
        Score(-float(own), bool(right), int(end - row.first), row.bytes)
        for row, own, right, end in zip(rows, nats, greedy, ends, strict=True)
    ]


@partial(jax.jit, static_argnames="clear_states")
def _score_segment(
    model: Model,
    state: CarriedState,
    inputs: Array,
    targets: Array,
    counts: Array,
    *,
    clear_states: bool,
) -> tuple[CarriedState, Array, Array]:
    """Reads a segment, arrays [B, N], of whose targets those count where `counts` is true.

    Returns the next state; and for each row the summed nats and whether all were the likeliest.
    """
    if clear_states:
        state = clear_recurrent(state, model.initial_state(state.batch_size))
    features, state = model.features(inputs, state)
    logits = model.logits(features)
    nats = jnp.sum(jnp.where(counts, target_nats(logits, targets), 0.0), axis=1)
    likeliest = jnp.argmax(logits, axis=-1) == targets
    return state, nats, jnp.all(likeliest | ~counts, axis=1)


def _segment_length(config: ExperimentConfig, longest: int) -> int:
    """The run's segment length, halved as long as a single segment holds the longest row."""
    model, length = config.model, config.data.segment_length
    unit = model.window if isinstance(model, ModelConfig) else getattr(model, "segment", None) or 1
    while length % (2 * unit) == 0 and length // 2 >= longest:
        length //= 2
    return length
