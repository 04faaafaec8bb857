"""The study as JSON values."""

import math
from typing import Any

import numpy as np

from block_recurrent.lab.analysis import figures
from block_recurrent.lab.analysis.intervals import Estimate
from block_recurrent.lab.analysis.kinds import KINDS
from block_recurrent.lab.analysis.occurrences import FIRST
from block_recurrent.lab.analysis.study import Study
from block_recurrent.lab.analysis.token_losses import reach_of


def json_values(study: Study) -> dict[str, Any]:
    """Everything on the page as JSON values."""
    corpus = study.corpus
    return {
        "corpus": {
            "origin": corpus.origin,
            "documents": list(map(str, corpus.ids)),
            "tokens": len(corpus.tokens),
            "tokenizer": corpus.tokenizer,
            "fingerprint": corpus.fingerprint,
        },
        "options": study.options._asdict(),
        "reference": None if study.reference is None else study.subjects[study.reference].name,
        "position_edges": figures.edges(study).tolist(),
        "kinds": dict(zip(KINDS, figures.kind_counts(study).tolist(), strict=True)),
        "runs": [_run_data(study, index) for index in range(len(study.subjects))],
        "context": _context_data(study),
    }


def _listed(found: Estimate) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in found._asdict().items()}


def _run_data(study: Study, index: int) -> dict[str, Any]:
    subject, findings = study.subjects[index], study.findings[index]
    compared = index in study.others()
    return {
        "name": subject.name,
        "workdir": subject.workdir,
        "step": subject.step,
        **reach_of(subject.config.model)._asdict(),
        "bits": _listed(figures.loss(study, index)),
        "bits_by_position": _listed(figures.by_position(study, index)),
        "difference": _listed(figures.difference(study, index)) if compared else None,
        "difference_by_position": (
            _listed(figures.difference_by_position(study, index)) if compared else None
        ),
        "bits_by_kind": _listed(figures.by_kind(study, index)),
        "difference_by_kind": (
            _listed(figures.difference_by_kind(study, index)) if compared else None
        ),
        "words": _words_data(study, index) if compared else None,
        "interventions": findings.interventions and _interventions_data(study, index),
        "states": findings.states and _states_data(study, index),
    }


def _words_data(study: Study, index: int) -> dict[str, Any]:
    limits, counts, gain = figures.gain_by_distance(study, index)
    top, reach = figures.top_words(study, index), figures.reach(study, index)
    return {
        "window": reach.window,
        "reach": reach.reach,
        "classes": figures.word_classes(study, index),
        "distance_edges": limits.tolist(),
        "counts_by_distance": counts.tolist(),
        "gain_by_distance": _listed(gain),
        "shares_of_top": figures.shares(study, index),
        "shares_of_all": figures.shares(study, index, None),
        "top": [
            {
                "word": word.word,
                "document": str(study.corpus.ids[word.document]),
                "position": word.position,
                "distance": None if word.distance == FIRST else word.distance,
                "bits": word.nats / math.log(2),
            }
            for word in top
        ],
    }


def _interventions_data(study: Study, index: int) -> dict[str, Any]:
    def listed(name: str) -> dict[str, Any]:
        bits, change = figures.intervention(study, index, name)
        where = figures.intervention_by_position(study, index, name)
        return {
            "bits": _listed(bits),
            "difference": _listed(change),
            "difference_by_position": _listed(where),
        }

    return {name: listed(name) for name in figures.readings(study)}


def _states_data(study: Study, index: int) -> list[dict[str, Any]]:
    config = study.subjects[index].config.model
    found = []
    for layer, states in zip(
        config.recurrent_indices, study.findings[index].states or [], strict=True
    ):
        positions, quartiles = figures.change_by_position(states, config.window)
        arrays = {
            "positions": positions,
            "change_quartiles": quartiles,
            "similarity": states.similarity.mean(),
            "lags": states.lags,
            "later": states.later,
            "kept": states.kept,
            "added": states.added,
            "attention": states.attention,
            "effective": states.effective,
            "used": states.used,
        }
        listed = {name: np.asarray(value).tolist() for name, value in arrays.items()}
        found.append({"layer": layer, **listed})
    return found


def _context_data(study: Study) -> dict[str, Any] | None:
    contexts = study.contexts
    return contexts and {
        "lengths": contexts.lengths,
        "bits": (contexts.losses / math.log(2)).tolist(),
        "relative_gains": contexts.gains.tolist(),
        "recl": contexts.recl,
        "positions": study.positions,
    }
