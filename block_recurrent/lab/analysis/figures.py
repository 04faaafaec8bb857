"""The figures of the analyses, from what `study` computed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from block_recurrent.lab.analysis.interventions import FROZEN, NORMAL, READINGS, SWAPPED
from block_recurrent.lab.analysis.states import LayerStates
from block_recurrent.lab.analysis.study import Study
from block_recurrent.lab.analysis.token_losses import (
    Estimate,
    Reach,
    estimate,
    position_edges,
    reach_of,
    sums_by_group,
    sums_by_position,
)
from block_recurrent.lab.analysis.words import (
    CLASSES,
    FIRST,
    KINDS,
    Gain,
    classes,
    distance_edges,
    group_words,
    largest_gains,
)

Losses = Sequence[np.ndarray]
TOP = 20  # words that are told apart, as in the paper
EARLY = 8  # blocks of a document, in which the initial states are replaced


def all_figures(study: Study) -> dict[str, Any]:
    """All that the tables and pictures show, and that analysis.json holds.

    Losses, differences and gains are `Estimate`s in bits. What a run does not have is None:
    differences and words without a reference, other readings and states without recurrent layers.
    """
    corpus, losses = study.corpus, study.findings[0].losses
    edges = position_edges(max(map(len, losses)))
    reference, contexts = study.reference, study.contexts
    return {
        "corpus": {
            "origin": corpus.origin,
            "documents": list(map(str, corpus.ids)),
            "tokens": len(corpus.tokens),
            "tokenizer": corpus.tokenizer,
            "fingerprint": corpus.fingerprint,
        },
        "options": study.options,
        "reference": None if reference is None else study.subjects[reference].name,
        "position_edges": edges,
        "tokens_by_position": sums_by_position(losses, edges)[1].sum(0),
        "kinds": dict(
            zip(KINDS, sums_by_group(losses, study.kinds, len(KINDS))[1].sum(0), strict=True)
        ),
        "readings": _readings(study),
        "runs": [_run(study, index, edges) for index in range(len(study.subjects))],
        "context": contexts
        and {
            "lengths": contexts.lengths,
            "bits": contexts.losses / math.log(2),
            "relative_gains": contexts.gains,
            "recl": contexts.recl,
            "positions": study.positions,
        },
    }


def _readings(study: Study) -> dict[str, str]:
    """The label of each reading; a document that is read alone has no other's states."""
    labels = READINGS | {FROZEN: f"frozen from position {study.options.freeze_at:,}"}
    if min(len(study.corpus), study.options.lanes) == 1:
        del labels[SWAPPED]
    return labels


def _run(study: Study, index: int, edges: np.ndarray) -> dict[str, Any]:
    subject, findings = study.subjects[index], study.findings[index]
    run = {"name": subject.name, "workdir": subject.workdir, "step": subject.step}
    run |= reach_of(subject.config.model)._asdict()
    losses: dict[str, Losses | None] = {"bits": findings.losses, "difference": None}
    if study.reference is not None and study.reference != index:
        losses["difference"] = _minus(findings.losses, study.findings[study.reference].losses)
        run["words"] = _words(study, index, study.reference)
    else:
        run["words"] = None
    for name, nats in losses.items():
        run[name] = nats and _of_all(nats)
        run[f"{name}_by_position"] = nats and _bits(*sums_by_position(nats, edges))
        run[f"{name}_by_kind"] = nats and _bits(*sums_by_group(nats, study.kinds, len(KINDS)))
    readings = findings.interventions
    run["interventions"] = readings and {
        name: _reading(readings[name], readings[NORMAL], edges) for name in _readings(study)
    }
    run["states"] = findings.states and [
        {"layer": layer, **_states(states, subject.config.model.window)}
        for layer, states in zip(
            subject.config.model.recurrent_indices, findings.states, strict=True
        )
    ]
    return run


def _bits(nats: np.ndarray, counts: np.ndarray) -> Estimate:
    """Sums of nats over counts, as bits."""
    return Estimate(*(np.asarray(part) / math.log(2) for part in estimate(nats, counts)))


def _of_all(losses: Losses) -> Estimate:
    sums = np.array([x.sum(dtype=np.float64) for x in losses])
    return _bits(sums, np.array([len(x) for x in losses], np.float64))


def _minus(one: Losses, other: Losses) -> list[np.ndarray]:
    return [a.astype(np.float64) - b for a, b in zip(one, other, strict=True)]


def _reading(losses: Losses, normal: Losses, edges: np.ndarray) -> dict[str, Estimate]:
    cost = _minus(losses, normal)
    return {
        "bits": _of_all(losses),
        "difference": _of_all(cost),
        "difference_by_position": _bits(*sums_by_position(cost, edges)),
    }


def _words(study: Study, index: int, reference: int) -> dict[str, Any]:
    """Gains by how far back a word last occurred, and the words that gain most."""
    # The larger window and the larger reach of the two runs.
    pair = [reach_of(study.subjects[i].config.model) for i in (index, reference)]
    reach = Reach(*map(max, zip(*pair, strict=True)))
    own, other = (
        [words.sums(x) for words, x in zip(study.words, study.findings[i].losses, strict=True)]
        for i in (index, reference)
    )
    edges = distance_edges(max(int(words.distance.max(initial=1)) for words in study.words))
    # A last bin after all distances is that of first occurrences.
    groups = [
        np.where(
            words.distance == FIRST,
            len(edges) - 1,
            np.searchsorted(edges, words.distance, side="right") - 1,
        )
        for words in study.words
    ]
    found = group_words(groups, own, other, len(edges))
    gains = largest_gains(study.words, own, other, None)
    return {
        **reach._asdict(),
        "classes": _classes(study, own, other, reach),
        "distance_edges": edges,
        "counts_by_distance": found.counts.sum(0),
        "gain_by_distance": _bits(found.reference - found.own, found.counts),
        "shares_of_top": _shares(gains[:TOP], reach),
        "shares_of_all": _shares(gains, reach),
        "top": [
            {
                "word": gain.word,
                "document": str(study.corpus.ids[gain.document]),
                "position": gain.position,
                "distance": None if gain.distance == FIRST else gain.distance,
                "bits": gain.nats / math.log(2),
            }
            for gain in gains[:TOP]
        ],
    }


def _classes(study: Study, own: Losses, other: Losses, reach: Reach) -> list[dict[str, Any]]:
    """Counts, bits per word and gains of each of CLASSES, then of all words."""
    groups = [classes(words.distance, reach) for words in study.words]
    counts, ours, theirs = (
        np.column_stack([x, x.sum(1)]) for x in group_words(groups, own, other, len(CLASSES))
    )
    gain, total = _bits(theirs - ours, counts), (theirs - ours).sum(0)
    means = {"reference": _bits(theirs, counts).mean, "own": _bits(ours, counts).mean}
    return [
        {
            "class": name,
            "words": int(counts[:, n].sum()),
            **{key: float(mean[n]) for key, mean in means.items()},
            "gain": float(gain.mean[n]),
            "low": float(gain.low[n]),
            "high": float(gain.high[n]),
            "share_of_gain": float(total[n] / total[-1]) if total[-1] else math.nan,
        }
        for n, name in enumerate([*CLASSES, "all words"])
    ]


def _shares(gains: Sequence[Gain], reach: Reach) -> dict[str, int]:
    """How many words were not in the window before, and how many look like names."""
    return {
        "words": len(gains),
        "not_in_window": sum(
            gain.distance == FIRST or gain.distance > reach.window for gain in gains
        ),
        "capital": sum(gain.capital for gain in gains),
        "identifier": sum(gain.identifier for gain in gains),
    }


def _states(states: LayerStates, window: int) -> dict[str, Any]:
    edges = position_edges(int(states.position.max(initial=1)) + 1, window)
    bins = np.searchsorted(edges, states.position, side="right") - 1
    filled = [n for n in range(len(edges) - 1) if (bins == n).any()]
    quartiles = [np.quantile(states.change[bins == n], (0.25, 0.5, 0.75)) for n in filled]
    early = states.position < EARLY * window
    return {
        "positions": middles(edges)[filled],
        "change_quartiles": np.array(quartiles).reshape(-1, 3).T,
        "change_early": _mean(states.change[early]),
        "change_later": _mean(states.change[~early]),
        "similarity": _mean(states.similarity),
        "lags": states.lags,
        "later": states.later,
        "kept": states.kept,
        "added": states.added,
        "attention": states.attention,
        "effective": states.effective,
        "used": states.used,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def middles(edges: np.ndarray) -> np.ndarray:
    """The middles of bins on a logarithmic axis; the first bin begins at 0."""
    return np.sqrt(np.maximum(edges[:-1], edges[1] / 2) * edges[1:])
