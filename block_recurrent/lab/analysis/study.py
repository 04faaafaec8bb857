"""All analyses of a group of models on the same documents.

Their figures are plain dictionaries of numbers and arrays, which analysis.json holds. Losses,
differences and gains are in bits; their means are `Estimate`s.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import TokenizedCorpus, Tokenizer
from block_recurrent.lab.analysis.context_length import (
    context_gains,
    context_lengths,
    context_losses,
    sample_positions,
)
from block_recurrent.lab.analysis.interventions import (
    FROZEN,
    NORMAL,
    READINGS,
    SWAPPED,
    intervened_losses,
)
from block_recurrent.lab.analysis.states import LAGS, LayerStates, observe_states
from block_recurrent.lab.analysis.token_losses import (
    Estimate,
    Reach,
    estimate,
    position_edges,
    reach_of,
    sums_by_group,
    sums_by_position,
    token_losses,
)
from block_recurrent.lab.analysis.words import (
    CLASSES,
    FIRST,
    KINDS,
    Gain,
    Words,
    classes,
    distance_edges,
    kinds_of_corpus,
    largest_gains,
    words_of_corpus,
)
from block_recurrent.lab.tables.naming import is_recurrent

Data = dict[str, Any]
Losses = Sequence[np.ndarray]  # of every token, of each document [n]
Say = Callable[[str], None]
TOP = 20  # words that are told apart, as in the paper
EARLY = 8  # blocks of a document, in which the initial states are replaced


class Subject(NamedTuple):
    """A trained model.

    Attributes:
      name: what tables call it.
      workdir: where its run is.
      step: of its checkpoint.
      config: of its run.
      model: the model.
    """

    name: str
    workdir: str
    step: int
    config: ExperimentConfig
    model: Any


class Options(NamedTuple):
    """How much is computed.

    Attributes:
      lanes: documents that are read at once, at most.
      positions: tokens at which the length of the context is varied.
      shortest_context: in tokens.
      longest_context: in tokens; it is doubled up to here.
      freeze_at: position from which on the states are frozen, in tokens.
    """

    lanes: int = 32
    positions: int = 512
    shortest_context: int = 8
    longest_context: int = 2048
    freeze_at: int = 1024


def study(
    subjects: Sequence[Subject],
    reference: int | None,
    corpus: TokenizedCorpus,
    tokenizer: Tokenizer,
    options: Options,
    say: Say = lambda text: None,
) -> Data:
    """Carries out all analyses.

    Args:
      subjects: models of the same tokenizer.
      reference: index of the one that the others are compared with, or None.
      corpus: the documents.
      tokenizer: of the documents.
      options: how much is computed.
      say: takes the progress, for people.

    Returns:
      All that the tables and pictures show. What a run does not have is None: differences and words
      without a reference, other readings and states without recurrent layers, the context if
      documents are too short to vary it.
    """
    lanes = min(len(corpus), options.lanes)
    bits = []
    for subject in subjects:
        reading = _reading(subject, lanes, say, "loss of every token")
        clear_states = subject.config.training.clear_states
        bits.append(
            _bits(token_losses(subject.model, corpus, clear_states=clear_states, **reading))
        )
    edges = position_edges(max(map(len, bits[0])))
    kinds, words = kinds_of_corpus(corpus, tokenizer), words_of_corpus(corpus, tokenizer)
    runs = []
    for index, (subject, own) in enumerate(zip(subjects, bits, strict=True)):
        reach = reach_of(subject.config.model)
        run: Data = {"name": subject.name, "workdir": subject.workdir, "step": subject.step}
        run |= reach._asdict() | loss_figures("bits", own, edges, kinds) | {"words": None}
        difference = None
        if reference is not None and reference != index:
            difference = minus(own, bits[reference])
            pair = zip(reach, reach_of(subjects[reference].config.model), strict=True)
            both = Reach(*map(max, pair))
            run["words"] = word_figures(words, own, bits[reference], both, corpus.ids)
        run |= loss_figures("difference", difference, edges, kinds)
        runs.append(run | _of_states(subject, corpus, lanes, options.freeze_at, edges, say))
    counts = np.bincount(np.concatenate(kinds), minlength=len(KINDS))
    return {
        "corpus": {
            **{name: getattr(corpus, name) for name in ("origin", "tokenizer", "fingerprint")},
            "documents": list(map(str, corpus.ids)),
            "tokens": len(corpus.tokens),
        },
        "position_edges": edges,
        "tokens_by_position": sums_by_position(kinds, edges)[1].sum(0),
        "kinds": dict(zip(KINDS, counts, strict=True)),
        "options": options,
        "reference": None if reference is None else subjects[reference].name,
        "readings": READINGS | {FROZEN: f"frozen from position {options.freeze_at:,}"},
        "runs": runs,
        "context": _vary_context(subjects, corpus, options, say),
    }


def _bits(nats: Losses) -> list[np.ndarray]:
    return [part.astype(np.float64) / math.log(2) for part in nats]


def _reading(subject: Subject, lanes: int, say: Say, what: str) -> Data:
    """How a model reads the documents, and what is told of it."""
    return {
        "lanes": lanes,
        "segment_length": subject.config.data.segment_length,
        "progress": lambda share: say(f"{subject.name}: {what}, {share:.0%}"),
    }


def _of_states(
    subject: Subject,
    corpus: TokenizedCorpus,
    lanes: int,
    freeze_at: int,
    edges: np.ndarray,
    say: Say,
) -> Data:
    """The losses with other recurrent states, and the states."""
    model, config = subject.model, subject.config
    if not is_recurrent(config):
        return {"interventions": None, "states": None}
    reading = _reading(subject, lanes, say, "loss with other states")
    losses = intervened_losses(model, corpus, freeze_at=freeze_at, **reading)
    if lanes == 1:  # no other document has states to read with
        del losses[SWAPPED]
    readings, interventions = {name: _bits(nats) for name, nats in losses.items()}, {}
    for name, bits in readings.items():
        cost = minus(bits, readings[NORMAL])
        by_position = estimate(*sums_by_position(cost, edges))
        means = {"bits": mean_loss(bits), "difference": mean_loss(cost)}
        interventions[name] = means | {"difference_by_position": by_position}
    progress = _reading(subject, lanes, say, "states")["progress"]
    states = observe_states(model, corpus, lanes=lanes, progress=progress)
    layers = zip(config.model.recurrent_indices, states, strict=True)
    figures = [{"layer": n, **state_figures(found, config.model.window)} for n, found in layers]
    return {"interventions": interventions, "states": figures}


def _vary_context(
    subjects: Sequence[Subject], corpus: TokenizedCorpus, options: Options, say: Say
) -> Data | None:
    lengths = context_lengths(corpus, options.shortest_context, options.longest_context)
    if len(lengths) < 2:
        return None
    sample = sample_positions(corpus, lengths[-1], options.positions)
    lanes = min(options.lanes, len(sample.document))
    found = [
        context_losses(
            subject.model,
            corpus,
            sample,
            lengths,
            clear_states=subject.config.training.clear_states,
            **_reading(subject, lanes, say, "length of the context"),
        )
        for subject in subjects
    ]
    losses = np.array([each.nats for each in found])
    gains, recl = context_gains(losses, lengths)
    return {
        "lengths": lengths,
        "bits": losses.mean(-1) / math.log(2),
        "remembrance": [each.remembrance.mean(-1) for each in found],
        "relative_gains": gains,
        "recl": recl,
        "positions": len(sample.document),
    }


def minus(one: Losses, other: Losses) -> list[np.ndarray]:
    """The differences of the losses of every token, of each document [n]."""
    return [a - b for a, b in zip(one, other, strict=True)]


def loss_figures(
    name: str, losses: Losses | None, edges: np.ndarray, kinds: Sequence[np.ndarray]
) -> Data:
    """Mean losses of all tokens, by position between `edges` and by kind; None without losses.

    The figures are named after `name`; `kinds` are those of every token, of each document [n].
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
    own = [found.sums(losses) for found, losses in zip(words, own, strict=True)]
    reference = [found.sums(losses) for found, losses in zip(words, reference, strict=True)]
    gains = minus(reference, own)
    edges = distance_edges(max(int(found.distance.max(initial=1)) for found in words))
    # A last bin after all distances is that of first occurrences.
    bins = [np.searchsorted(edges, found.distance, side="right") - 1 for found in words]
    bins = [np.where(n < 0, len(edges) - 1, n) for n in bins]
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
            | {"document": str(ids[gain.document])}
            | ({"distance": None} if gain.distance == FIRST else {})
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
    """A layer's states over all documents, with their size and change by position."""
    edges = position_edges(int(states.position.max(initial=1)) + 1, window)
    bins = np.searchsorted(edges, states.position, side="right") - 1
    filled = np.unique(bins)

    def quartiles(values: np.ndarray) -> np.ndarray:
        found = [np.quantile(values[bins == n], (0.25, 0.5, 0.75)) for n in filled]
        return np.array(found).reshape(-1, 3).T

    early = states.position < EARLY * window
    whole = ("later", "kept", "added", "attention", "effective", "used")

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    return {
        "positions": middles(edges)[filled],
        "size_quartiles": quartiles(states.size),
        "size_early": mean(states.size[early]),
        "size_later": mean(states.size[~early]),
        "change_quartiles": quartiles(states.change),
        "change_early": mean(states.change[early]),
        "change_later": mean(states.change[~early]),
        "similarity": mean(states.similarity),
        "lags": LAGS,
        **{name: getattr(states, name) for name in whole},
    }


def middles(edges: np.ndarray) -> np.ndarray:
    """The middles of bins on a logarithmic axis; the first bin begins at 0."""
    return np.sqrt(np.maximum(edges[:-1], edges[1] / 2) * edges[1:])
