"""All analyses of a group of models on the same documents."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import TokenizedCorpus, Tokenizer
from block_recurrent.lab.analysis.context_length import (
    ContextGains,
    context_gains,
    context_lengths,
    context_losses,
    sample_positions,
)
from block_recurrent.lab.analysis.interventions import intervened_losses
from block_recurrent.lab.analysis.states import LayerStates, observe_states
from block_recurrent.lab.analysis.token_losses import Progress, token_losses
from block_recurrent.lab.analysis.words import Words, kinds_of_corpus, words_of_corpus
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


class Findings(NamedTuple):
    """What one model gives.

    Attributes:
      losses: nats of every token, of each document [n].
      interventions: the same by name of the reading; None without recurrent layers.
      states: of each recurrent layer; None without any.
    """

    losses: list[np.ndarray]
    interventions: dict[str, list[np.ndarray]] | None
    states: list[LayerStates] | None


class Study(NamedTuple):
    """What all models give.

    Attributes:
      subjects: the models.
      reference: index of the one that the others are compared with; None for no comparison.
      corpus: the documents.
      options: how much was computed.
      findings: of each model.
      words: of each document.
      kinds: of each document's tokens, [n].
      contexts: None if the documents are too short to vary the context.
      positions: at how many tokens the context was varied.
    """

    subjects: Sequence[Subject]
    reference: int | None
    corpus: TokenizedCorpus
    options: Options
    findings: list[Findings]
    words: list[Words]
    kinds: list[np.ndarray]
    contexts: ContextGains | None
    positions: int


def study(
    subjects: Sequence[Subject],
    reference: int | None,
    corpus: TokenizedCorpus,
    tokenizer: Tokenizer,
    options: Options,
    say: Say = lambda text: None,
) -> Study:
    """Carries out all analyses.

    Args:
      subjects: models of the same tokenizer.
      reference: index of the one that the others are compared with, or None.
      corpus: the documents.
      tokenizer: of the documents.
      options: how much is computed.
      say: takes the progress, for people.
    """
    findings = [_find(subject, corpus, options, say) for subject in subjects]
    contexts, positions = _vary_context(subjects, corpus, options, say)
    words = words_of_corpus(corpus, tokenizer)
    kinds = kinds_of_corpus(corpus, tokenizer)
    return Study(subjects, reference, corpus, options, findings, words, kinds, contexts, positions)


def _progress(say: Say, subject: Subject, what: str) -> Progress:
    return lambda share: say(f"{subject.name}: {what}, {share:.0%}")


def _find(subject: Subject, corpus: TokenizedCorpus, options: Options, say: Say) -> Findings:
    lanes, config = min(len(corpus), options.lanes), subject.config
    length = config.data.segment_length
    losses = token_losses(
        subject.model,
        corpus,
        lanes=lanes,
        segment_length=length,
        clear_states=config.training.clear_states,
        progress=_progress(say, subject, "loss of every token"),
    )
    if not is_recurrent(config):
        return Findings(losses, None, None)
    interventions = intervened_losses(
        subject.model,
        corpus,
        lanes=lanes,
        segment_length=length,
        freeze_at=options.freeze_at,
        progress=_progress(say, subject, "loss with other states"),
    )
    progress = _progress(say, subject, "states")
    states = observe_states(subject.model, corpus, lanes=lanes, progress=progress)
    return Findings(losses, interventions, states)


def _vary_context(
    subjects: Sequence[Subject], corpus: TokenizedCorpus, options: Options, say: Say
) -> tuple[ContextGains | None, int]:
    lengths = context_lengths(corpus, options.shortest_context, options.longest_context)
    if len(lengths) < 2:
        return None, 0
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
    return context_gains(np.array(losses), lengths), len(sample.document)
