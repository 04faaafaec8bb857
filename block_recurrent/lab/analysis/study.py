"""All analyses of a group of models on the same documents."""

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
from block_recurrent.lab.analysis.figures import (
    Data,
    loss_figures,
    minus,
    reading_figures,
    state_figures,
    word_figures,
)
from block_recurrent.lab.analysis.interventions import (
    FROZEN,
    NORMAL,
    READINGS,
    SWAPPED,
    intervened_losses,
)
from block_recurrent.lab.analysis.states import observe_states
from block_recurrent.lab.analysis.token_losses import (
    Reach,
    position_edges,
    reach_of,
    sums_by_position,
    token_losses,
)
from block_recurrent.lab.analysis.words import KINDS, Words, kinds_of_corpus, words_of_corpus
from block_recurrent.lab.tables.naming import is_recurrent

Say = Callable[[str], None]


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
      All that the tables and pictures show, and that analysis.json holds. What a run does not have
      is None: differences and words without a reference, other readings and states without
      recurrent layers, the context if documents are too short to vary it.
    """
    lanes = min(len(corpus), options.lanes)
    bits = [
        _bits(
            token_losses(
                subject.model,
                corpus,
                clear_states=subject.config.training.clear_states,
                **_reading(subject, lanes, say, "loss of every token"),
            )
        )
        for subject in subjects
    ]
    edges = position_edges(max(map(len, bits[0])))
    kinds, words = kinds_of_corpus(corpus, tokenizer), words_of_corpus(corpus, tokenizer)
    runs = []
    for index, subject in enumerate(subjects):
        run: Data = {"name": subject.name, "workdir": subject.workdir, "step": subject.step}
        run |= _of_losses(subjects, bits, index, reference, edges, kinds, words, corpus.ids)
        runs.append(run | _of_states(subject, corpus, lanes, options.freeze_at, edges, say))
    return {
        **_of_corpus(corpus, edges, kinds),
        "options": options,
        "reference": None if reference is None else subjects[reference].name,
        "readings": READINGS | {FROZEN: f"frozen from position {options.freeze_at:,}"},
        "runs": runs,
        "context": _vary_context(subjects, corpus, options, say),
    }


def _of_corpus(corpus: TokenizedCorpus, edges: np.ndarray, kinds: list[np.ndarray]) -> Data:
    """What the documents are, and how many tokens they have by position and by kind."""
    names = ("origin", "tokenizer", "fingerprint")
    return {
        "corpus": {
            **{name: getattr(corpus, name) for name in names},
            "documents": list(map(str, corpus.ids)),
            "tokens": len(corpus.tokens),
        },
        "position_edges": edges,
        "tokens_by_position": sums_by_position(kinds, edges)[1].sum(0),
        "kinds": dict(
            zip(KINDS, np.bincount(np.concatenate(kinds), minlength=len(KINDS)), strict=True)
        ),
    }


def _bits(nats: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [part.astype(np.float64) / math.log(2) for part in nats]


def _reading(subject: Subject, lanes: int, say: Say, what: str) -> Data:
    """How a model reads the documents, and what is told of it."""
    return {
        "lanes": lanes,
        "segment_length": subject.config.data.segment_length,
        "progress": lambda share: say(f"{subject.name}: {what}, {share:.0%}"),
    }


def _of_losses(
    subjects: Sequence[Subject],
    bits: Sequence[list[np.ndarray]],
    index: int,
    reference: int | None,
    edges: np.ndarray,
    kinds: list[np.ndarray],
    words: list[Words],
    ids: Sequence[Any],
) -> Data:
    """The losses of a run, and their differences to the reference's."""
    reach, own = reach_of(subjects[index].config.model), bits[index]
    figures = reach._asdict() | loss_figures("bits", own, edges, kinds)
    if reference is None or reference == index:
        return figures | loss_figures("difference", None, edges, kinds) | {"words": None}
    other = bits[reference]
    pair = zip(reach, reach_of(subjects[reference].config.model), strict=True)
    figures["words"] = word_figures(words, own, other, Reach(*map(max, pair)), ids)
    return figures | loss_figures("difference", minus(own, other), edges, kinds)


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
    readings = {name: _bits(nats) for name, nats in losses.items()}
    progress = _reading(subject, lanes, say, "states")["progress"]
    states = observe_states(model, corpus, lanes=lanes, progress=progress)
    layers = zip(config.model.recurrent_indices, states, strict=True)
    return {
        "interventions": {
            name: reading_figures(bits, readings[NORMAL], edges) for name, bits in readings.items()
        },
        "states": [
            {"layer": layer, **state_figures(found, config.model.window)} for layer, found in layers
        ],
    }


def _vary_context(
    subjects: Sequence[Subject], corpus: TokenizedCorpus, options: Options, say: Say
) -> Data | None:
    lengths = context_lengths(corpus, options.shortest_context, options.longest_context)
    if len(lengths) < 2:
        return None
    sample = sample_positions(corpus, lengths[-1], options.positions)
    lanes = min(options.lanes, len(sample.document))
    losses = [
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
    gains, recl = context_gains(np.array(losses), lengths)
    return {
        "lengths": lengths,
        "bits": np.mean(losses, -1) / math.log(2),
        "relative_gains": gains,
        "recl": recl,
        "positions": len(sample.document),
    }
