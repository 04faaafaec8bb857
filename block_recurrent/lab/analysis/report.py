"""Where the gain of the recurrence comes from: tables, data and pictures of trained runs."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.lab.analysis.figures import EARLY, all_figures
from block_recurrent.lab.analysis.interventions import NORMAL
from block_recurrent.lab.analysis.pictures import pictures_of
from block_recurrent.lab.analysis.runs import (
    find_reference,
    load_corpus,
    load_subjects,
    take_documents,
)
from block_recurrent.lab.analysis.study import Options, study
from block_recurrent.lab.analysis.token_losses import Estimate
from block_recurrent.lab.tables.layout import MISSING, Page, TextTable, publish
from block_recurrent.runs.reading import Run

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
Data = dict[str, Any]


def report(
    runs: Sequence[Run],
    folder: Path,
    *,
    against: Path | None,
    split: str,
    text: Path | None,
    documents: int,
    tokens: int,
    options: Options,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Analyses runs, prints the tables and writes them, with data and pictures, into `folder`.

    Args:
      runs: at least one.
      folder: where the files go.
      against: work directory of the reference, among the runs; None for the first run without
        recurrent layers.
      split: of the runs' corpus.
      text: a file to read in place of the corpus.
      documents: how many are read, at most.
      tokens: of each document, the first so many.
      options: how much is computed.
      progress: takes the progress, for people.

    Raises:
      CheckpointError, DataError, SelectionError: what `load_subjects` and `load_corpus` raise.
    """
    corpus, tokenizer = load_corpus(runs, split, text, progress)
    corpus = take_documents(corpus, tokenizer, documents, tokens)
    reference, subjects = find_reference(runs, against), load_subjects(runs)
    data = all_figures(study(subjects, reference, corpus, tokenizer, options, progress))
    publish(make_page(data), folder)


def make_page(data: Data) -> Page:
    """All tables of `all_figures`; the words that gain most are on the Markdown page only."""
    corpus, runs = data["corpus"], data["runs"]
    compared = [run for run in runs if run["words"]]
    recurrent = [run for run in runs if run["states"]]
    title = f"{corpus['origin']}: {len(corpus['documents'])} documents, {corpus['tokens']:,} tokens"
    tables = {
        title: _runs_table(data),
        "Loss by position in the document, bits": _position_table(data),
        "Loss by kind of token, bits": _kind_table(data),
    }
    for run in compared:
        tables[f"Words: gain of {run['name']}, bits per word"] = _words_table(run["words"])
    if recurrent:
        tables["Loss with other recurrent states, bits"] = _interventions_table(data, recurrent)
    if data["context"]:
        tables["Loss by length of the context, bits"] = _context_table(data)
    if recurrent:
        tables["Recurrent states"] = _states_table(recurrent)
        tables["Gates, share by unit"] = _gates_table(recurrent)
        tables["Attention of tokens to states, by head"] = _attention_table(recurrent)
    top = {
        f"The words that gain most with {run['name']}": _top_table(run["words"]) for run in compared
    }
    pictures = {name: partial(draw, data) for name, draw in pictures_of(data).items()}
    description = " ".join([*_sentences(data), DESCRIPTION])
    return Page("analysis", tables, description, data, pictures, top)


def _sentences(data: Data) -> Iterator[str]:
    """What the tables leave out, and the words that gain most as a number."""
    for run in data["runs"]:
        if run["words"] and (top := run["words"]["shares_of_top"])["words"]:
            usual = run["words"]["shares_of_all"]
            of_all = {kind: f"{count / usual['words']:.0%}" for kind, count in usual.items()}
            yield (
                f"Of the {top['words']} words that gain most with {run['name']}, "
                f"{top['not_in_window']} have no earlier occurrence within the window (of all "
                f"words {of_all['not_in_window']}), {top['capital']} begin with a capital letter "
                f"({of_all['capital']}) and {top['identifier']} look like identifiers "
                f"({of_all['identifier']})."
            )
    for run in data["runs"]:
        if not run["states"]:
            yield (
                f"{run['name']} has no recurrent layers: interventions, states and attention to "
                "states are left out."
            )
    if data["reference"] is None:
        yield "No run without recurrent layers was given to compare with: see --against."
    if data["context"] is None:
        yield "The length of the context was not varied: documents or --context are too short."


def _cell(value: float, digits: int = 4, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else MISSING


def _interval(low: float, high: float) -> str:
    return MISSING if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def _difference_cells(estimate: Estimate, index: Any = ()) -> list[str]:
    """A mean and its interval."""
    mean, low, high = (float(part[index]) for part in estimate)
    return [_cell(mean, sign="+"), _interval(low, high)]


def _runs_table(data: Data) -> TextTable:
    rows = []
    for run in data["runs"]:
        cells = [MISSING if data["reference"] is None else "reference", ""]
        if run["difference"]:
            cells = _difference_cells(run["difference"])
        sizes = [f"{run[name]:,}" for name in ("step", "window", "reach")]
        rows.append([run["name"], run["workdir"], *sizes, _cell(run["bits"].mean), *cells])
    columns = ("run", "workdir", "step", "window", "reach", "bits", "difference", "95 % interval")
    return TextTable(columns, rows, LEFT)


def _position_table(data: Data) -> TextTable:
    edges = itertools.pairwise(data["position_edges"].tolist())
    names = [f"{low:,} to {high - 1:,}" for low, high in edges]
    return _groups_table(data, "position", names, data["tokens_by_position"])


def _kind_table(data: Data) -> TextTable:
    names, counts = zip(*data["kinds"].items(), strict=True)
    return _groups_table(data, "kind", names, np.array(counts))


def _groups_table(data: Data, by: str, names: Sequence[str], counts: np.ndarray) -> TextTable:
    """Losses of all runs and differences of those compared, a line for each group of tokens."""
    title = "token" if by == "kind" else by
    columns = [title, "tokens", *(run["name"] for run in data["runs"])]
    columns += ["difference", "95 % interval", "part"] * sum(
        run["difference"] is not None for run in data["runs"]
    )
    rows = []
    for n, (name, count) in enumerate(zip(names, counts, strict=True)):
        row = [name, f"{count:,.0f}"]
        row += [_cell(run[f"bits_by_{by}"].mean[n]) for run in data["runs"]]
        for run in data["runs"]:
            if found := run[f"difference_by_{by}"]:
                part = found.mean[n] * count / counts.sum()
                row += [*_difference_cells(found, n), _cell(part, sign="+")]
        rows.append(row)
    return TextTable(columns, rows, (title,))


def _words_table(words: Data) -> TextTable:
    rows = [
        [
            row["class"],
            f"{row['words']:,}",
            _cell(row["reference"], 3),
            _cell(row["own"], 3),
            _cell(row["gain"], sign="+"),
            _interval(row["low"], row["high"]),
            _cell(100 * row["share_of_gain"], 1),
        ]
        for row in words["classes"]
    ]
    name = f"last seen (window {words['window']:,}, reach {words['reach']:,})"
    columns = (name, "count", "reference", "own", "gain", "95 % interval", "% of the gain")
    return TextTable(columns, rows, (name,))


def _interventions_table(data: Data, runs: Sequence[Data]) -> TextTable:
    rows = []
    for run in runs:
        for name, found in run["interventions"].items():
            cells = ["", ""] if name == NORMAL else _difference_cells(found["difference"])
            rows.append([run["name"], data["readings"][name], _cell(found["bits"].mean), *cells])
    return TextTable(("run", "reading", "bits", "difference", "95 % interval"), rows, LEFT)


def _context_table(data: Data) -> TextTable:
    context, rows = data["context"], []
    columns = ["run", *(f"{length:,}" for length in context["lengths"]), "RECL"]
    for index, recl in enumerate(context["recl"]):
        losses = [_cell(bits, 3) for bits in context["bits"][index]]
        longest = f"> {context['lengths'][-2]:,}" if recl is None else f"{recl:,}"
        rows.append([data["runs"][index]["name"], *losses, longest])
        gains = [_cell(100 * gain, 2) + " %" for gain in context["relative_gains"][index]]
        rows.append(["  relative gain of twice as much", *gains, "", ""])
    return TextTable(columns, rows, LEFT)


def _layers(runs: Sequence[Data]) -> Iterator[tuple[list[str], Data]]:
    """The first cells of each recurrent layer, and its states."""
    for run in runs:
        for states in run["states"]:
            yield [run["name"], str(states["layer"])], states


def _states_table(runs: Sequence[Data]) -> TextTable:
    rows = [
        [
            *first,
            *(_cell(states[name], 3) for name in ("change_early", "change_later", "similarity")),
            *(_cell(value, 3) for value in states["later"]),
        ]
        for first, states in _layers(runs)
    ]
    columns = ["run", "layer", f"change, blocks 1 to {EARLY}", "later", "cosine between states"]
    columns += [f"after {lag}" for lag in runs[0]["states"][0]["lags"]]
    return TextTable(columns, rows, LEFT)


def _gates_table(runs: Sequence[Data]) -> TextTable:
    rows = []
    for first, states in _layers(runs):
        for gate, name in itertools.product(range(len(states["kept"])), ("kept", "added")):
            shares = states[name][gate]
            quantiles = np.quantile(shares, (0.05, 0.25, 0.5, 0.75, 0.95))
            cells = [_cell(value, 3) for value in (shares.mean(), *quantiles)]
            rows.append([*first, f"{gate + 1}, {name}", *cells])
    columns = ("run", "layer", "gate", "mean", "5 %", "25 %", "median", "75 %", "95 %")
    return TextTable(columns, rows, LEFT)


def _attention_table(runs: Sequence[Data]) -> TextTable:
    rows = []
    for first, states in _layers(runs):
        for head, shares in enumerate(states["attention"]):
            largest = [_cell(100 * share, 1) for share in np.sort(shares)[::-1][:3]]
            number = [_cell(states[name][head], 1) for name in ("effective", "used")]
            rows.append([*first, str(head), str(len(shares)), *number, ", ".join(largest)])
    columns = ("run", "layer", "head", "states", "used by a token", "used by all", "largest, %")
    return TextTable(columns, rows, LEFT)


def _top_table(words: Data) -> TextTable:
    rows = [
        [
            f"`{word['word']}`",
            word["document"],
            f"{word['position']:,}",
            "first" if word["distance"] is None else f"{word['distance']:,}",
            _cell(word["bits"], 2),
        ]
        for word in words["top"]
    ]
    return TextTable(("word", "document", "position", "distance", "gain, bits"), rows, LEFT)
