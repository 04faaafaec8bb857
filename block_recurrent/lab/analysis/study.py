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
    Progress,
    Reach,
    position_edges,
    reach_of,
    sums_by_group,
    sums_by_position,
    token_losses,
)
from block_recurrent.lab.analysis.words import KINDS, kinds_of_corpus, words_of_corpus
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
                lanes=lanes,
                segment_length=subject.config.data.segment_length,
                clear_states=subject.config.training.clear_states,
                progress=_progress(say, subject, "loss of every token"),
            )
        )
        for subject in subjects
    ]
    edges = position_edges(max(map(len, bits[0])))
    kinds, words = kinds_of_corpus(corpus, tokenizer), words_of_corpus(corpus, tokenizer)
    labels = READINGS | {FROZEN: f"frozen from position {options.freeze_at:,}"}
    if lanes == 1:  # there is no other document's state to read with
        del labels[SWAPPED]
    runs = []
    for index, (subject, own) in enumerate(zip(subjects, bits, strict=True)):
        model = subject.config.model
        run: Data = {"name": subject.name, "workdir": subject.workdir, "step": subject.step}
        run |= reach_of(model)._asdict() | loss_figures("bits", own, edges, kinds)
        run["words"] = difference = None
        if reference is not None and reference != index:
            other = bits[reference]
            difference = minus(own, other)
            pair = reach_of(model), reach_of(subjects[reference].config.model)
            reach = Reach(*map(max, zip(*pair, strict=True)))
            run["words"] = word_figures(words, own, other, reach, corpus.ids)
        run |= loss_figures("difference", difference, edges, kinds)
        runs.append(run | _of_states(subject, corpus, lanes, options.freeze_at, edges, labels, say))
    return {
        "corpus": {
            "origin": corpus.origin,
            "documents": list(map(str, corpus.ids)),
            "tokens": len(corpus.tokens),
            "tokenizer": corpus.tokenizer,
            "fingerprint": corpus.fingerprint,
        },
        "options": options,
        "reference": None if reference is None else subjects[reference].name,
        "position_edges": edges,
        "tokens_by_position": sums_by_position(bits[0], edges)[1].sum(0),
        "kinds": dict(zip(KINDS, sums_by_group(bits[0], kinds, len(KINDS))[1].sum(0), strict=True)),
        "readings": labels,
        "runs": runs,
        "context": _vary_context(subjects, corpus, options, say),
    }


def _bits(nats: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [part.astype(np.float64) / math.log(2) for part in nats]


def _progress(say: Say, subject: Subject, what: str) -> Progress:
    return lambda share: say(f"{subject.name}: {what}, {share:.0%}")


def _of_states(
    subject: Subject,
    corpus: TokenizedCorpus,
    lanes: int,
    freeze_at: int,
    edges: np.ndarray,
    labels: dict[str, str],
    say: Say,
) -> Data:
    """The losses with other recurrent states, and the states."""
    model, config = subject.model, subject.config
    if not is_recurrent(config):
        return {"interventions": None, "states": None}
    losses = intervened_losses(
        model,
        corpus,
        lanes=lanes,
        segment_length=config.data.segment_length,
        freeze_at=freeze_at,
        progress=_progress(say, subject, "loss with other states"),
    )
    readings = {name: _bits(losses[name]) for name in labels}
    states = observe_states(model, corpus, lanes=lanes, progress=_progress(say, subject, "states"))
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
    losses = [
        context_losses(
            subject.model,
            corpus,
            sample,
            lengths,
            lanes=min(options.lanes, len(sample.document)),
            segment_length=subject.config.data.segment_length,
            clear_states=subject.config.training.clear_states,
            progress=_progress(say, subject, "length of the context"),
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
