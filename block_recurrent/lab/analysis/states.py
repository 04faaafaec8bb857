"""What the recurrent states do while documents are read: how they change, and who uses them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from block_recurrent.data import TokenizedCorpus
from block_recurrent.data.lanes import Lane, LaneReader, evaluation_lanes
from block_recurrent.lab.analysis.observation import Observed, observe_block
from block_recurrent.lab.analysis.token_losses import Progress

LAGS = (1, 2, 4, 8, 16, 32, 64)  # blocks; states are kept for comparison every max(LAGS) blocks


class LayerStates(NamedTuple):
    """A recurrent layer's states over whole documents; n blocks, those of a full window.

    Attributes:
      position: of each block's first token in its document, [n].
      change: |s' - s| / |s| of each block, [n].
      similarity: mean cosine between different states as they enter each block, [n].
      lags: numbers of blocks.
      later: mean cosine of a state with itself so many blocks later, NaN without any, [lags].
      kept: mean of what each unit keeps, of each gate, [G, E].
      added: mean of what each unit takes of the new value, [G, E].
      attention: mean probability that a token gives each state, [H, S].
      effective: exp of the mean entropy of a token's probabilities, [H]: how many states a token
        attends to.
    """

    position: np.ndarray
    change: np.ndarray
    similarity: np.ndarray
    lags: tuple[int, ...]
    later: np.ndarray
    kept: np.ndarray
    added: np.ndarray
    attention: np.ndarray
    effective: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """exp of the entropy of the mean probabilities, [H]: how many states are attended to."""
        return effective_number(self.attention)


def effective_number(probabilities: np.ndarray) -> np.ndarray:
    """exp of the entropy of [..., S] probabilities: S if they are equal, 1 if one has all."""
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.exp(-(probabilities * logarithms).sum(-1))


class _Sums:
    """Adds up what is observed of one layer."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, float, float]] = []
        self.later = {lag: [0.0, 0] for lag in LAGS}
        self.gates: Any = 0.0
        self.attention: Any = 0.0
        self.entropy: Any = 0.0
        self.tokens = 0

    def add(self, seen: Observed, lanes: Sequence[Lane | None], mask: np.ndarray) -> None:
        """Adds a block of every lane [B], of which the mask [B, W] says what is text."""
        whole = mask.all(1)
        for row in np.flatnonzero(whole).tolist():
            lane = lanes[row]
            assert lane is not None
            figures = float(seen.change[row]), float(seen.similarity[row])
            self.blocks.append((lane.offset, *figures))
        self.gates += np.array([[y[whole].sum(0) for y in gate] for gate in seen.gates])
        self.attention += seen.attention.sum(0)
        self.entropy += seen.entropy.sum(0)
        self.tokens += int(mask.sum())

    def add_later(self, later: np.ndarray, lag: int, rows: np.ndarray) -> None:
        """Adds similarities [B] with the states `lag` blocks ago, of some rows [B]."""
        self.later[lag][0] += float(later[rows].sum())
        self.later[lag][1] += int(rows.sum())

    def means(self) -> LayerStates:
        """The figures of all that was added."""
        position, change, similarity = np.array(self.blocks).reshape(-1, 3).T
        later = [total / count if count else np.nan for total, count in self.later.values()]
        gates = np.asarray(self.gates) / max(len(self.blocks), 1)
        return LayerStates(
            position.astype(int),
            change,
            similarity,
            LAGS,
            np.array(later),
            gates[:, 0],
            gates[:, 1],
            self.attention / self.tokens,
            np.exp(self.entropy / self.tokens),
        )


def observe_states(
    model: Any,
    corpus: TokenizedCorpus,
    *,
    lanes: int,
    progress: Progress = lambda share: None,
) -> list[LayerStates]:
    """The states of each recurrent layer, lowest first, while documents are read.

    Args:
      model: a language model with recurrent layers.
      corpus: the documents.
      lanes: how many are read at once.
      progress: called with the share of the tokens that have been read.
    """
    window = model.config.window
    reader = LaneReader(corpus, lanes, window, model.config.vocab_size)
    carried = model.initial_state(lanes)
    sums = [_Sums() for _ in model.stack.cells]
    kept, kept_lanes, age, done = carried.recurrent, [None] * lanes, 0, 0
    for standing in evaluation_lanes(reader):
        batch = reader.batch(standing)
        carried, seen = observe_block(model, carried, batch, kept)
        seen = jax.device_get(seen)
        age += 1
        rows = _same_document(kept_lanes, standing) & batch.mask.all(1)
        for layer, own in zip(sums, seen, strict=True):
            layer.add(own, standing, batch.mask)
            if age in LAGS:
                layer.add_later(own.later, age, rows)
        if age == LAGS[-1] or not any(kept_lanes):
            kept, kept_lanes, age = carried.recurrent, standing, 0
        done += int(batch.mask.sum())
        progress(done / len(corpus.tokens))
    return [layer.means() for layer in sums]


def _same_document(one: Sequence[Lane | None], other: Sequence[Lane | None]) -> np.ndarray:
    """The lanes [B] that read the same document at both times."""
    pairs = zip(one, other, strict=True)
    return np.array([bool(a and b and a.document == b.document) for a, b in pairs])
