"""The page of the analyses: tables of the figures of `study`, and what they leave out."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from block_recurrent.lab.analysis.interventions import NORMAL
from block_recurrent.lab.analysis.pictures import pictures_of
from block_recurrent.lab.analysis.states import LAGS
from block_recurrent.lab.analysis.study import EARLY, Data
from block_recurrent.lab.analysis.token_losses import Estimate
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
DIFFERENCE = ("difference", "95 % interval")
LEFT = ("run", "reading", "word", "document", "workdir", "token")


def make_page(data: Data) -> Page:
    """All tables of `study`; the words that gain most are on the Markdown page only."""
    corpus, runs = data["corpus"], data["runs"]
    compared = {run["name"]: run["words"] for run in runs if run["words"]}
    recurrent = [run for run in runs if run["states"]]
    title = f"{corpus['origin']}: {len(corpus['documents'])} documents, {corpus['tokens']:,} tokens"
    edges = itertools.pairwise(data["position_edges"].tolist())
    positions = [f"{low:,} to {high - 1:,}" for low, high in edges]
    kinds, counts = list(data["kinds"]), np.array(list(data["kinds"].values()))
    tables = {
        title: _runs_table(data),
        "Loss by position in the document, bits": _groups_table(
            runs, "position", "position", positions, data["tokens_by_position"]
        ),
        "Loss by kind of token, bits": _groups_table(runs, "kind", "token", kinds, counts),
    }
    for name, words in compared.items():
        tables[f"Words: gain of {name}, bits per word"] = _words_table(words)
    if recurrent:
        tables["Loss with other recurrent states, bits"] = _interventions_table(data, recurrent)
    if data["context"]:
        tables["Loss by length of the context, bits"] = _context_table(runs, data["context"])
    if recurrent:
        tables |= _state_tables(recurrent)
    top = {
        f"The words that gain most with {name}": _top_table(words)
        for name, words in compared.items()
    }
    description = " ".join([*_sentences(data), DESCRIPTION])
    return Page("analysis", tables, description, data, pictures_of(data), top)


def _sentences(data: Data) -> Iterator[str]:
    """The words that gain most as a number, and what the tables leave out."""
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


def _cell(value: float, form: str = ".4f") -> str:
    return f"{value:{form}}" if math.isfinite(value) else MISSING


def _interval(low: float, high: float) -> str:
    return MISSING if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def _difference_cells(estimate: Estimate, index: Any = ()) -> list[str]:
    mean, low, high = (float(part[index]) for part in estimate)
    return [_cell(mean, "+.4f"), _interval(low, high)]


def _runs_table(data: Data) -> TextTable:
    rows = []
    for run in data["runs"]:
        cells = [MISSING if data["reference"] is None else "reference", ""]
        if run["difference"]:
            cells = _difference_cells(run["difference"])
        sizes = [f"{run[name]:,}" for name in ("step", "window", "reach")]
        rows.append([run["name"], run["workdir"], *sizes, _cell(run["bits"].mean), *cells])
    columns = ("run", "workdir", "step", "window", "reach", "bits", *DIFFERENCE)
    return TextTable(columns, rows, LEFT)


def _groups_table(
    runs: Sequence[Data], by: str, title: str, names: Sequence[str], counts: np.ndarray
) -> TextTable:
    """Losses of all runs and differences of those compared, a line for each group of tokens."""
    compared = [run[f"difference_by_{by}"] for run in runs if run["difference"]]
    columns = [title, "tokens", *(run["name"] for run in runs)]
    columns += [*DIFFERENCE, "part"] * len(compared)
    rows = []
    for n, (name, count) in enumerate(zip(names, counts, strict=True)):
        row = [name, f"{count:,.0f}", *(_cell(run[f"bits_by_{by}"].mean[n]) for run in runs)]
        for found in compared:
            part = found.mean[n] * count / counts.sum()
            row += [*_difference_cells(found, n), _cell(part, "+.4f")]
        rows.append(row)
    return TextTable(columns, rows, (title,))


def _words_table(words: Data) -> TextTable:
    rows = [
        [
            row["class"],
            f"{row['words']:,}",
            _cell(row["reference"], ".3f"),
            _cell(row["own"], ".3f"),
            _cell(row["gain"], "+.4f"),
            _interval(row["low"], row["high"]),
            _cell(100 * row["share_of_gain"], ".1f"),
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
    return TextTable(("run", "reading", "bits", *DIFFERENCE), rows, LEFT)


def _context_table(runs: Sequence[Data], context: Data) -> TextTable:
    rows, lengths = [], context["lengths"]
    for index, (run, recl) in enumerate(zip(runs, context["recl"], strict=True)):
        losses = [_cell(bits, ".3f") for bits in context["bits"][index]]
        longest = f"≥ {lengths[-1]:,}" if recl is None else f"{recl:,}"
        rows.append([run["name"], *losses, longest])
        gains = [_cell(gain, ".2%").replace("%", " %") for gain in context["relative_gains"][index]]
        rows.append(["  relative gain of twice as much", *gains, "", ""])
        further = [_cell(distance, ".3f") for distance in context["remembrance"][index][:-1]]
        rows.append(["  remembrance of what is before", *further, "", ""])
    return TextTable(["run", *(f"{length:,}" for length in lengths), "RECL"], rows, LEFT)


def _state_tables(runs: Sequence[Data]) -> dict[str, TextTable]:
    """The tables of the recurrent layers of all runs."""
    states, gates, attention = [], [], []
    for name, layer in ((run["name"], layer) for run in runs for layer in run["states"]):
        first = [name, str(layer["layer"])]
        facts = ("size_early", "size_later", "change_early", "change_later", "similarity")
        figures = [*(layer[key] for key in facts), *layer["later"]]
        states.append([*first, *(_cell(value, ".3f") for value in figures)])
        for gate, shares in enumerate(zip(layer["kept"], layer["added"], strict=True), 1):
            gates.append([*first, str(gate), *(_cell(share.mean(), ".3f") for share in shares)])
        heads = zip(layer["attention"], layer["effective"], layer["used"], strict=True)
        for head, (shares, *numbers) in enumerate(heads):
            used = [_cell(number, ".1f") for number in numbers]
            attention.append([*first, str(head), str(len(shares)), *used])
    early = f"blocks 1 to {EARLY}"
    facts = (f"size, {early}", "later", f"change, {early}", "later", "cosine between states")
    tables = {
        "Recurrent states": ((*facts, *(f"after {lag}" for lag in LAGS)), states),
        "Gates, mean over units": (("gate", "kept", "added"), gates),
        "Attention of tokens to states, by head": (
            ("head", "states", "used by a token", "used by all"),
            attention,
        ),
    }
    return {
        title: TextTable(("run", "layer", *columns), rows, LEFT)
        for title, (columns, rows) in tables.items()
    }


def _top_table(words: Data) -> TextTable:
    rows = [
        [
            f"`{word['word']}`",
            word["document"],
            f"{word['position']:,}",
            "first" if word["distance"] is None else f"{word['distance']:,}",
            _cell(word["bits"], ".2f"),
        ]
        for word in words["top"]
    ]
    return TextTable(("word", "document", "position", "distance", "gain, bits"), rows, LEFT)
