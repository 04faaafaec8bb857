"""The figures of the analyses' tables and pictures, from what `analysis.study` computed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from block_recurrent.lab.analysis.documents import lanes_for
from block_recurrent.lab.analysis.intervals import Estimate, estimate
from block_recurrent.lab.analysis.interventions import FROZEN, NORMAL, READINGS, SWAPPED
from block_recurrent.lab.analysis.kinds import KINDS
from block_recurrent.lab.analysis.occurrences import (
    CLASSES,
    FIRST,
    Gain,
    Grouped,
    classes,
    distance_edges,
    group_words,
    largest_gains,
)
from block_recurrent.lab.analysis.states import LayerStates
from block_recurrent.lab.analysis.study import Study
from block_recurrent.lab.analysis.token_losses import (
    Reach,
    position_edges,
    reach_of,
    sums_by_group,
    sums_by_position,
)

Losses = Sequence[np.ndarray]
TOP = 20  # words that are told apart, as in the paper


def _in_bits(nats: Estimate) -> Estimate:
    return Estimate(*(np.asarray(part) / math.log(2) for part in nats))


def _totals(losses: Losses) -> tuple[np.ndarray, np.ndarray]:
    sums = np.array([x.sum(dtype=np.float64) for x in losses])
    return sums, np.array([len(x) for x in losses], np.float64)


def _minus(one: Losses, other: Losses) -> list[np.ndarray]:
    return [a.astype(np.float64) - b for a, b in zip(one, other, strict=True)]


def _reference(study: Study) -> Losses:
    assert study.reference is not None
    return study.findings[study.reference].losses


def loss(study: Study, index: int) -> Estimate:
    """Bits per token of a run."""
    return _in_bits(estimate(*_totals(study.findings[index].losses)))


def difference(study: Study, index: int) -> Estimate:
    """A run's bits per token less the reference's."""
    return _in_bits(estimate(*_totals(_minus(study.findings[index].losses, _reference(study)))))


def edges(study: Study) -> np.ndarray:
    """The edges of the bins of positions."""
    return position_edges(max(map(len, study.findings[0].losses)))


def position_counts(study: Study) -> np.ndarray:
    """Tokens in each bin of positions."""
    return sums_by_position(study.findings[0].losses, edges(study))[1].sum(0)


def by_position(study: Study, index: int) -> Estimate:
    """Bits per token of a run in each bin of positions."""
    return _in_bits(estimate(*sums_by_position(study.findings[index].losses, edges(study))))


def difference_by_position(study: Study, index: int) -> Estimate:
    """A run's bits per token less the reference's in each bin of positions."""
    losses = _minus(study.findings[index].losses, _reference(study))
    return _in_bits(estimate(*sums_by_position(losses, edges(study))))


def kind_counts(study: Study) -> np.ndarray:
    """Tokens of each of KINDS."""
    return sums_by_group(study.findings[0].losses, study.kinds, len(KINDS))[1].sum(0)


def by_kind(study: Study, index: int) -> Estimate:
    """Bits per token of a run for each kind of token."""
    losses = study.findings[index].losses
    return _in_bits(estimate(*sums_by_group(losses, study.kinds, len(KINDS))))


def difference_by_kind(study: Study, index: int) -> Estimate:
    """A run's bits per token less the reference's for each kind of token."""
    losses = _minus(study.findings[index].losses, _reference(study))
    return _in_bits(estimate(*sums_by_group(losses, study.kinds, len(KINDS))))


def readings(study: Study) -> list[str]:
    """The readings that say something: a document read alone has no other's states."""
    alone = lanes_for(study.corpus, study.options.lanes) == 1
    return [name for name in READINGS if name != SWAPPED or not alone]


def reading_label(study: Study, name: str) -> str:
    """What a reading is called."""
    if name == FROZEN:
        return f"frozen from position {study.options.freeze_at:,}"
    return READINGS[name]


def intervention(study: Study, index: int, name: str) -> tuple[Estimate, Estimate]:
    """Bits per token of a run in one of the readings, and these less those of the normal one."""
    found = study.findings[index].interventions
    assert found is not None
    change = _minus(found[name], found[NORMAL])
    return _in_bits(estimate(*_totals(found[name]))), _in_bits(estimate(*_totals(change)))


def intervention_by_position(study: Study, index: int, name: str) -> Estimate:
    """What one of the readings costs in each bin of positions, bits per token."""
    found = study.findings[index].interventions
    assert found is not None
    change = _minus(found[name], found[NORMAL])
    return _in_bits(estimate(*sums_by_position(change, edges(study))))


def reach(study: Study, index: int) -> Reach:
    """The larger window and reach of a run and of the reference."""
    assert study.reference is not None
    pair = [reach_of(study.subjects[i].config.model) for i in (index, study.reference)]
    return Reach(*map(max, zip(*pair, strict=True)))


def _word_losses(study: Study, index: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The words' nats in a run and in the reference, of each document."""
    own, other = study.findings[index].losses, _reference(study)
    return tuple(
        [words.sums(x) for words, x in zip(study.words, losses, strict=True)]
        for losses in (own, other)
    )  # type: ignore[return-value]


def _gain(grouped: Grouped) -> Estimate:
    return _in_bits(estimate(grouped.reference - grouped.own, grouped.counts))


def word_classes(study: Study, index: int) -> list[dict[str, Any]]:
    """Counts, bits per word and gains by how far back a word last occurred, then of all words."""
    limits = reach(study, index)
    groups = [classes(words.distance, limits) for words in study.words]
    found = group_words(groups, *_word_losses(study, index), len(CLASSES))
    names = [*CLASSES, "all words"]
    found = Grouped(*(np.column_stack([x, x.sum(1)]) for x in found))
    gain, counts = _gain(found), found.counts.sum(0)
    own, other = (_in_bits(estimate(x, found.counts)).mean for x in (found.own, found.reference))
    total = (found.reference - found.own).sum(0)
    return [
        {
            "class": name,
            "words": int(counts[n]),
            "reference": float(other[n]),
            "own": float(own[n]),
            "gain": float(gain.mean[n]),
            "low": _finite(gain.low[n]),
            "high": _finite(gain.high[n]),
            "share_of_gain": float(total[n] / total[-1]) if total[-1] else math.nan,
        }
        for n, name in enumerate(names)
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def gain_by_distance(study: Study, index: int) -> tuple[np.ndarray, np.ndarray, Estimate]:
    """Edges of distances, counts, and the gain in bits per word between them.

    A last bin after all edges is that of first occurrences.
    """
    longest = max((int(words.distance.max(initial=1)) for words in study.words), default=1)
    limits = distance_edges(longest)
    bins = len(limits) - 1
    groups = [
        np.where(
            words.distance == FIRST,
            bins,
            np.searchsorted(limits, words.distance, side="right") - 1,
        )
        for words in study.words
    ]
    found = group_words(groups, *_word_losses(study, index), bins + 1)
    return limits, found.counts.sum(0), _gain(found)


def top_words(study: Study, index: int, count: int | None = TOP) -> list[Gain]:
    """The words that gain most; all words where `count` is None."""
    return largest_gains(study.words, *_word_losses(study, index), count)


def shares(study: Study, index: int, count: int | None = TOP) -> dict[str, int]:
    """How many of `top_words` were not in the window before, and how many look like names."""
    gains, limits = top_words(study, index, count), reach(study, index)
    return {
        "words": len(gains),
        "not_in_window": sum(
            gain.distance == FIRST or gain.distance > limits.window for gain in gains
        ),
        "capital": sum(gain.capital for gain in gains),
        "identifier": sum(gain.identifier for gain in gains),
    }


def change_by_position(states: LayerStates, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and quartiles of the relative change there, [3, bins]."""
    limits = position_edges(int(states.position.max(initial=1)) + 1, window)
    bins = np.searchsorted(limits, states.position, side="right") - 1
    filled = [n for n in range(len(limits) - 1) if (bins == n).any()]
    quartiles = [np.quantile(states.change[bins == n], (0.25, 0.5, 0.75)) for n in filled]
    centres = np.sqrt(np.maximum(limits[:-1], window / 2) * limits[1:])[filled]
    return centres, np.array(quartiles).reshape(-1, 3).T
