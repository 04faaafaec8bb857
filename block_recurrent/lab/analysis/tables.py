"""The tables of the analyses."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from block_recurrent.lab.analysis import figures
from block_recurrent.lab.analysis.data import json_values
from block_recurrent.lab.analysis.intervals import Estimate
from block_recurrent.lab.analysis.interventions import NORMAL
from block_recurrent.lab.analysis.kinds import KINDS
from block_recurrent.lab.analysis.study import Study
from block_recurrent.lab.analysis.token_losses import reach_of
from block_recurrent.lab.tables.layout import MISSING, Page, TextTable

DESCRIPTION = (
    "Bits are per token unless they are called bits per word. A difference is a run's figure minus "
    "the reference's, below zero the run is better, and its part what those tokens add to the "
    "difference of all; a gain is the reference's minus the run's. "
    "Intervals hold 95 % of a bootstrap over documents. A word is a run of letters, digits and "
    "underscores, its distance that to its previous occurrence, in tokens; window and reach, the "
    "window times the layers, are the larger ones of the two runs. docs/analysis.md explains every "
    "table."
)
LEFT = ("run", "reading", "words", "word", "document", "workdir", "gate")


def make_page(study: Study) -> Page:
    """The tables for the screen, and all data."""
    tables = {
        _corpus_title(study): _runs_table(study),
        "Loss by position in the document, bits": _position_table(study),
        "Loss by kind of token, bits": _kind_table(study),
    }
    for index in study.others():
        title = f"Words: gain of {_name(study, index)}, bits per word"
        tables[title] = _words_table(study, index)
    recurrent = [i for i, found in enumerate(study.findings) if found.interventions]
    if recurrent:
        tables["Loss with other recurrent states, bits"] = _interventions_table(study, recurrent)
    if study.contexts:
        tables["Loss by length of the context, bits"] = _context_table(study)
    if recurrent:
        tables["Recurrent states"] = _states_table(study, recurrent)
        tables["Gates, share by unit"] = _gates_table(study, recurrent)
        tables["Attention of tokens to states, by head"] = _attention_table(study, recurrent)
    description = " ".join([*_sentences(study), DESCRIPTION])
    return Page(tables, description, json_values(study))


def _corpus_title(study: Study) -> str:
    corpus = study.corpus
    return f"{corpus.origin}: {len(corpus)} documents, {len(corpus.tokens):,} tokens"


def _name(study: Study, index: int) -> str:
    return study.subjects[index].name


def _sentences(study: Study) -> list[str]:
    """What the tables leave out, and the words that gain most as a number."""
    found = []
    for index in study.others():
        top, usual = figures.shares(study, index), figures.shares(study, index, None)
        if top["words"]:
            of_all = {kind: f"{count / usual['words']:.0%}" for kind, count in usual.items()}
            found.append(
                f"Of the {top['words']} words that gain most with {_name(study, index)}, "
                f"{top['not_in_window']} have no earlier occurrence within the window (of all "
                f"words {of_all['not_in_window']}), {top['capital']} begin with a capital letter "
                f"({of_all['capital']}) and {top['identifier']} look like identifiers "
                f"({of_all['identifier']})."
            )
    for subject in study.subjects:
        if not subject.recurrent:
            found.append(
                f"{subject.name} has no recurrent layers: interventions, states and attention to "
                "states are left out."
            )
    if study.reference is None:
        found.append("No run without recurrent layers was given to compare with: see --against.")
    if study.contexts is None:
        found.append(
            "The length of the context was not varied: documents or --context are too short."
        )
    return found


def cell(value: float | None, places: int = 4, sign: str = "") -> str:
    """A figure, or that it is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:{sign}.{places}f}"


def interval(estimate: Estimate, index: Any = ()) -> str:
    """The ends of an interval."""
    low, high = (float(end[index]) for end in (estimate.low, estimate.high))
    return MISSING if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def _difference_cells(estimate: Estimate, index: Any = ()) -> list[str]:
    return [cell(float(estimate.mean[index]), sign="+"), interval(estimate, index)]


def _runs_table(study: Study) -> TextTable:
    rows = []
    for index, subject in enumerate(study.subjects):
        window, reach = reach_of(subject.config.model)
        cells = ["reference" if index == study.reference else MISSING, ""]
        if index in study.others():
            cells = _difference_cells(figures.difference(study, index))
        loss = cell(float(figures.loss(study, index).mean))
        place = [subject.workdir, f"{subject.step:,}", f"{window:,}", f"{reach:,}"]
        rows.append([subject.name, *place, loss, *cells])
    columns = ("run", "workdir", "step", "window", "reach", "bits", "difference", "95 % interval")
    return TextTable(columns, rows, LEFT)


def _position_table(study: Study) -> TextTable:
    edges = itertools.pairwise(figures.edges(study))
    names = [f"{low:,} to {high - 1:,}" for low, high in edges]
    losses = [figures.by_position(study, index) for index in range(len(study.subjects))]
    differences = [figures.difference_by_position(study, index) for index in study.others()]
    counts = figures.position_counts(study)
    return _groups_table(study, "position", names, counts, losses, differences)


def _kind_table(study: Study) -> TextTable:
    losses = [figures.by_kind(study, index) for index in range(len(study.subjects))]
    differences = [figures.difference_by_kind(study, index) for index in study.others()]
    counts = figures.kind_counts(study)
    return _groups_table(study, "token", list(KINDS), counts, losses, differences)


def _groups_table(
    study: Study,
    title: str,
    names: list[str],
    counts: np.ndarray,
    losses: list[Estimate],
    differences: list[Estimate],
) -> TextTable:
    """Losses of all runs and differences of those compared, a line for each group of tokens."""
    columns = [title, "tokens", *(subject.name for subject in study.subjects)]
    rows = [[name, f"{count:,.0f}"] for name, count in zip(names, counts, strict=True)]
    for found in losses:
        rows = [[*row, cell(loss)] for row, loss in zip(rows, found.mean, strict=True)]
    for found in differences:
        columns += ["difference", "95 % interval", "part"]
        parts = found.mean * counts / counts.sum()
        rows = [
            [*row, *_difference_cells(found, number), cell(float(parts[number]), sign="+")]
            for number, row in enumerate(rows)
        ]
    return TextTable(columns, rows, (title,))


def _words_table(study: Study, index: int) -> TextTable:
    reach, rows = figures.reach(study, index), []
    for row in figures.word_classes(study, index):
        gain = cell(row["gain"], sign="+")
        ends = MISSING if row["low"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        losses = [cell(row["reference"], 3), cell(row["own"], 3)]
        share = cell(100 * row["share_of_gain"], 1)
        rows.append([row["class"], f"{row['words']:,}", *losses, gain, ends, share])
    name = f"last seen (window {reach.window:,}, reach {reach.reach:,})"
    columns = (name, "count", "reference", "own", "gain", "95 % interval", "% of the gain")
    return TextTable(columns, rows, (name,))


def _interventions_table(study: Study, indices: Sequence[int]) -> TextTable:
    rows = []
    for index in indices:
        for name in figures.readings(study):
            label = figures.reading_label(study, name)
            loss, difference = figures.intervention(study, index, name)
            cells = _difference_cells(difference) if name != NORMAL else ["", ""]
            rows.append([_name(study, index), label, cell(float(loss.mean)), *cells])
    return TextTable(("run", "reading", "bits", "difference", "95 % interval"), rows, LEFT)


def _context_table(study: Study) -> TextTable:
    contexts = study.contexts
    assert contexts is not None
    columns, rows = ["run"], []
    columns += [f"{length:,}" for length in contexts.lengths] + ["RECL"]
    for index, recl in enumerate(contexts.recl):
        losses = [cell(float(nats) / math.log(2), 3) for nats in contexts.losses[index]]
        longest = f"> {contexts.lengths[-2]:,}" if recl is None else f"{recl:,}"
        rows.append([_name(study, index), *losses, longest])
        gains = [cell(100 * float(gain), 2) + " %" for gain in contexts.gains[index]]
        rows.append(["  relative gain of twice as much", *gains, "", ""])
    return TextTable(columns, rows, LEFT)


def _states_table(study: Study, indices: Sequence[int]) -> TextTable:
    rows = []
    for index, layer, states in _layers(study, indices):
        early = states.position < 8 * study.subjects[index].config.model.window
        changes = [
            cell(float(states.change[where].mean()) if where.any() else None, 3)
            for where in (early, ~early)
        ]
        later = [cell(float(value), 3) for value in states.later]
        alike = cell(float(states.similarity.mean()) if len(states.similarity) else None, 3)
        rows.append([_name(study, index), str(layer), *changes, alike, *later])
    lags = study.findings[indices[0]].states[0].lags  # type: ignore[index]
    columns = ["run", "layer", "change, blocks 1 to 8", "later", "cosine between states"]
    columns += [f"after {lag}" for lag in lags]
    return TextTable(columns, rows, LEFT)


def _layers(study: Study, indices: Sequence[int]):
    """Index of the run, index of the layer, and its states."""
    for index in indices:
        layers = study.subjects[index].config.model.recurrent_indices
        yield from (
            (index, layer, states)
            for layer, states in zip(layers, study.findings[index].states or [], strict=True)
        )


def _gates_table(study: Study, indices: Sequence[int]) -> TextTable:
    rows = []
    for index, layer, states in _layers(study, indices):
        for number, (kept, added) in enumerate(zip(states.kept, states.added, strict=True)):
            for name, shares in (("kept", kept), ("added", added)):
                quantiles = np.quantile(shares, (0.05, 0.25, 0.5, 0.75, 0.95))
                cells = [cell(float(value), 3) for value in (shares.mean(), *quantiles)]
                rows.append([_name(study, index), str(layer), f"{number + 1}, {name}", *cells])
    columns = ("run", "layer", "gate", "mean", "5 %", "25 %", "median", "75 %", "95 %")
    return TextTable(columns, rows, LEFT)


def _attention_table(study: Study, indices: Sequence[int]) -> TextTable:
    rows = []
    for index, layer, states in _layers(study, indices):
        for head, shares in enumerate(states.attention):
            largest = [cell(100 * float(share), 1) for share in np.sort(shares)[::-1][:3]]
            number = [cell(float(x[head]), 1) for x in (states.effective, states.used)]
            place = [_name(study, index), str(layer), str(head), str(len(shares))]
            rows.append([*place, *number, ", ".join(largest)])
    columns = ("run", "layer", "head", "states", "used by a token", "used by all", "largest, %")
    return TextTable(columns, rows, LEFT)


def top_table(study: Study, index: int) -> TextTable:
    """The words that gain most with a run."""
    rows = [
        [
            f"`{gain.word}`",
            study.corpus.ids[gain.document],
            f"{gain.position:,}",
            "first" if gain.distance < 0 else f"{gain.distance:,}",
            cell(gain.nats / math.log(2), 2),
        ]
        for gain in figures.top_words(study, index)
    ]
    return TextTable(("word", "document", "position", "distance", "gain, bits"), rows, LEFT)
