"""What context is worth: the relative effective context length (RECL), and what is remembered.

RECL is that of a group of models, after Dai et al. 2019, "Transformer-XL" (arXiv 1901.02860,
appendix C). With `l_i(c, t)` the loss of model i on the token at t given exactly the c tokens
before it:

- the baseline of a short context c is the best model's loss, position by position,
  `b(c, t) = min_i l_i(c, t)`;
- only the share r of positions with the largest baseline count, the hard ones;
- a longer context c' gives model i `f_i(c, c') = mean_t min(b(c, t), l_i(c', t))` there, and the
  relative gain is how much less its perplexity is,
  `g_i(c, c') = (exp f_i(c, c) - exp f_i(c, c')) / exp f_i(c, c)`;
- its RECL is the longest length c' to which an increase from c gains at least a threshold
  (section 4.3): a doubling that gains less does not end the search.

Different from the paper: c' is 2c and not c plus a few tokens, so the result is known to a factor
of two; and the positions are a sample.

The effective remembrance of Buitrago and Gu 2025 (arXiv 2507.02782) is the total variation distance
between a model's prediction after all tokens before a position and after the last c of them alone.
Here "all" is the longest context that is tried.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from block_recurrent.data import TokenizedCorpus
from block_recurrent.lab.analysis.token_losses import Progress
from block_recurrent.model.state import clear_recurrent

THRESHOLD = 0.01  # of the relative gain
HARD = 0.1  # r, the share of positions that count


class Sample(NamedTuple):
    """Sampled tokens, n of them.

    Attributes:
      document: index, [n].
      position: in the document, [n]; at least the longest context that is tried.
    """

    document: np.ndarray
    position: np.ndarray


class ContextLosses(NamedTuple):
    """What C lengths of the context give at n positions.

    Attributes:
      nats: the losses, [C, n].
      remembrance: the distance of the prediction from that with the longest context, from 0 to 1,
        [C, n].
    """

    nats: np.ndarray
    remembrance: np.ndarray


def context_lengths(corpus: TokenizedCorpus, shortest: int, longest: int) -> list[int]:
    """Doubles from `shortest` to `longest`, as far as the longest document has tokens."""
    limit = max(corpus.length(index) for index in range(len(corpus))) - 1
    lengths = [shortest]
    while lengths[-1] * 2 <= min(longest, limit):
        lengths.append(lengths[-1] * 2)
    return lengths if shortest <= limit else []


def sample_positions(corpus: TokenizedCorpus, context: int, count: int) -> Sample:
    """Random tokens that have `context` tokens before them, without repetition, at most `count`."""
    rooms = np.array([max(0, corpus.length(index) - context) for index in range(len(corpus))])
    total = int(rooms.sum())
    chosen = np.random.default_rng(0).choice(total, min(count, total), replace=False)
    ends = np.cumsum(rooms)
    document = np.searchsorted(ends, np.sort(chosen), side="right")
    return Sample(document, np.sort(chosen) - (ends - rooms)[document] + context)


@jax.jit(donate_argnums=1, static_argnames="clear_states")
def read_context(
    model: Any, carried: Any, inputs: Array, last: Array, *, clear_states: bool
) -> tuple[Any, Array]:
    """Reads [B, N] tokens: the next state, and after `last` log-probabilities of tokens, [B, V]."""
    if clear_states:
        carried = clear_recurrent(carried, model.initial_state(len(inputs)))
    features, carried = model.features(inputs, carried)
    at_last = jax.lax.dynamic_slice_in_dim(features, last, 1, axis=1)
    return carried, jax.nn.log_softmax(model.logits(at_last)[:, 0])


def context_losses(
    model: Any,
    corpus: TokenizedCorpus,
    sample: Sample,
    lengths: Sequence[int],
    *,
    lanes: int,
    segment_length: int,
    clear_states: bool = False,
    progress: Progress = lambda share: None,
) -> ContextLosses:
    """Losses with exactly c tokens of context, which are read from the initial state.

    Args:
      model: the language model.
      corpus: the documents.
      sample: the tokens that are predicted.
      lengths: the c, the longest one last.
      lanes: how many are read at once.
      segment_length: N, a multiple of what the model reads at once.
      clear_states: clear the recurrent states before every segment.
      progress: called with the share that is done.
    """
    count = len(sample.document)
    found = ContextLosses(*np.zeros((2, len(lengths), count)))
    total, done = sum(-(-c // segment_length) for c in lengths) * count, 0
    begins = np.concatenate([[0], corpus.ends])[sample.document] + sample.position
    longest: list[np.ndarray] = []  # probabilities with the longest context, of each part [B, V]
    for row, context in reversed(list(enumerate(lengths))):
        segments = -(-context // segment_length)
        for number, first in enumerate(range(0, count, lanes)):
            # The last lanes may repeat: every call has the same shape.
            chosen = begins[np.arange(first, first + lanes).clip(max=count - 1)]
            tokens = corpus.tokens[chosen[:, None] + np.arange(-context, 0)].astype(np.int32)
            # What follows a token cannot change its prediction, so the padding is harmless.
            tokens = np.pad(tokens, ((0, 0), (0, segments * segment_length - context)))
            last = np.int32((context - 1) % segment_length)
            carried, predicted = model.initial_state(lanes), None
            for piece in np.split(tokens, segments, axis=1):
                carried, predicted = read_context(
                    model, carried, piece, last, clear_states=clear_states
                )
            kept = min(lanes, count - first)
            own = slice(first, first + kept)
            logarithms = np.asarray(predicted)[:kept]
            probabilities = np.exp(logarithms)
            if row == len(lengths) - 1:
                longest.append(probabilities)
            targets = corpus.tokens[chosen[:kept]]
            found.nats[row, own] = -logarithms[np.arange(kept), targets]
            found.remembrance[row, own] = np.abs(probabilities - longest[number]).sum(-1) / 2
            done += kept * segments
            progress(done / total)
    return found


def context_gains(
    losses: np.ndarray, lengths: Sequence[int]
) -> tuple[np.ndarray, list[int | None]]:
    """What longer contexts give the models of a group.

    Args:
      losses: of M models with C context lengths at n positions, [M, C, n].
      lengths: the C lengths, each twice the one before.

    Returns:
      g_i(c, 2c) on the hard positions of c, [M, C - 1]; and the RECL of each model, None where the
      gain is still there at the longest context, and the shortest where there is none at all.
    """
    baseline = losses.min(0)
    count = max(1, round(HARD * losses.shape[2]))
    gains = np.zeros((len(losses), len(lengths) - 1))
    for short in range(len(lengths) - 1):
        hardest = np.argsort(-baseline[short], kind="stable")[:count]
        before = baseline[short, hardest]
        with_more = np.minimum(before, losses[:, short + 1, hardest]).mean(-1)
        gains[:, short] = 1 - np.exp(with_more - before.mean())
    enough = [np.flatnonzero(row >= THRESHOLD) for row in gains]
    reached = [int(row[-1]) + 1 if row.size else 0 for row in enough]
    return gains, [lengths[index] if index < len(lengths) - 1 else None for index in reached]
