"""The figures of the analyses, from what models lose: plain dictionaries of numbers and arrays.

Losses, differences and gains are in bits; their means are `Estimate`s.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from block_recurrent.lab.analysis.states import LAGS, LayerStates
from block_recurrent.lab.analysis.token_losses import (
    Estimate,
    Reach,
    estimate,
    position_edges,
    sums_by_group,
    sums_by_position,
)
from block_recurrent.lab.analysis.words import (
    CLASSES,
    FIRST,
    KINDS,
    Gain,
    Words,
    classes,
    distance_edges,
    largest_gains,
)

Losses = Sequence[np.ndarray]
Data = dict[str, Any]
TOP = 20  # words that are told apart, as in the paper
EARLY = 8  # blocks of a document, in which the initial states are replaced


def minus(one: Losses, other: Losses) -> list[np.ndarray]:
    """The differences of the losses of every token, of each document [n]."""
    return [a - b for a, b in zip(one, other, strict=True)]


def loss_figures(
    name: str, losses: Losses | None, edges: np.ndarray, kinds: Sequence[np.ndarray]
) -> Data:
    """Mean losses of all tokens, by position and by kind, named after `name`; None without losses.

    Args:
      name: of the losses.
      losses: bits of every token, of each document [n].
      edges: of the positions.
      kinds: of every token, of each document [n].
    """
    if losses is None:
        return dict.fromkeys((name, f"{name}_by_position", f"{name}_by_kind"))
    return {
        name: mean_loss(losses),
        f"{name}_by_position": estimate(*sums_by_position(losses, edges)),
        f"{name}_by_kind": estimate(*sums_by_group(losses, kinds, len(KINDS))),
    }


def mean_loss(losses: Losses) -> Estimate:
    """The mean over all tokens."""
    return estimate(np.array([x.sum() for x in losses]), np.array([len(x) for x in losses]))


def reading_figures(losses: Losses, normal: Losses, edges: np.ndarray) -> Data:
    """The loss with other states, and what it is above the normal one."""
    cost = minus(losses, normal)
    return {
        "bits": mean_loss(losses),
        "difference": mean_loss(cost),
        "difference_by_position": estimate(*sums_by_position(cost, edges)),
    }


def word_figures(
    words: Sequence[Words], own: Losses, reference: Losses, reach: Reach, ids: Sequence[Any]
) -> Data:
    """Gains by how far back a word last occurred, and the words that gain most.

    Args:
      words: of each document.
      own: the run's bits of every token, of each document.
      reference: the reference's.
      reach: the larger window and the larger reach of the two.
      ids: of the documents.
    """
    own, reference = (
        [found.sums(losses) for found, losses in zip(words, bits, strict=True)]
        for bits in (own, reference)
    )
    gains = minus(reference, own)
    edges = distance_edges(max(int(found.distance.max(initial=1)) for found in words))
    # A last bin after all distances is that of first occurrences.
    bins = [
        np.where(
            found.distance == FIRST,
            len(edges) - 1,
            np.searchsorted(edges, found.distance, side="right") - 1,
        )
        for found in words
    ]
    sums, counts = sums_by_group(gains, bins, len(edges))
    ranked = largest_gains(words, gains)
    return {
        **reach._asdict(),
        "classes": _classes(words, own, reference, gains, reach),
        "distance_edges": edges,
        "counts_by_distance": counts.sum(0),
        "gain_by_distance": estimate(sums, counts),
        "shares_of_top": _shares(ranked[:TOP], reach),
        "shares_of_all": _shares(ranked, reach),
        "top": [
            gain._asdict()
            | {
                "document": str(ids[gain.document]),
                "distance": None if gain.distance == FIRST else gain.distance,
            }
            for gain in ranked[:TOP]
        ],
    }


def _classes(
    words: Sequence[Words], own: Losses, reference: Losses, gains: Losses, reach: Reach
) -> list[Data]:
    """Counts, bits per word and gains of each of CLASSES, then of all words."""
    groups = [classes(found.distance, reach) for found in words]
    (ours, counts), (theirs, _), (gained, _) = (
        [np.column_stack([part, part.sum(1)]) for part in sums_by_group(bits, groups, len(CLASSES))]
        for bits in (own, reference, gains)
    )
    gain, total = estimate(gained, counts), gained.sum(0)
    columns = {
        "words": counts.sum(0).astype(int),
        "reference": estimate(theirs, counts).mean,
        "own": estimate(ours, counts).mean,
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "share_of_gain": total / total[-1] if total[-1] else np.full_like(total, math.nan),
    }
    return [
        {"class": name} | {key: values[n].item() for key, values in columns.items()}
        for n, name in enumerate([*CLASSES, "all words"])
    ]


def _shares(gains: Sequence[Gain], reach: Reach) -> dict[str, int]:
    """How many words were not in the window before, and how many look like names."""
    far = [gain.distance == FIRST or gain.distance > reach.window for gain in gains]
    return {
        "words": len(gains),
        "not_in_window": sum(far),
        "capital": sum(gain.capital for gain in gains),
        "identifier": sum(gain.identifier for gain in gains),
    }


def state_figures(states: LayerStates, window: int) -> Data:
    """A layer's states over all documents, with its change by position."""
    edges = position_edges(int(states.position.max(initial=1)) + 1, window)
    bins = np.searchsorted(edges, states.position, side="right") - 1
    filled = np.unique(bins)
    quartiles = [np.quantile(states.change[bins == n], (0.25, 0.5, 0.75)) for n in filled]
    early = states.position < EARLY * window
    whole = ("later", "kept", "added", "attention", "effective", "used")
    return {
        "positions": middles(edges)[filled],
        "change_quartiles": np.array(quartiles).reshape(-1, 3).T,
        "change_early": _mean(states.change[early]),
        "change_later": _mean(states.change[~early]),
        "similarity": _mean(states.similarity),
        "lags": LAGS,
        **{name: getattr(states, name) for name in whole},
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def middles(edges: np.ndarray) -> np.ndarray:
    """The middles of bins on a logarithmic axis; the first bin begins at 0."""
    return np.sqrt(np.maximum(edges[:-1], edges[1] / 2) * edges[1:])
