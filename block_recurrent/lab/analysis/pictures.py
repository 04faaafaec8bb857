"""The pictures of the analyses, one for each subject."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from block_recurrent.lab.analysis import figures
from block_recurrent.lab.analysis.context_length import THRESHOLD
from block_recurrent.lab.analysis.intervals import Estimate
from block_recurrent.lab.analysis.kinds import KINDS
from block_recurrent.lab.analysis.states import LAGS, LayerStates
from block_recurrent.lab.analysis.study import Study
from block_recurrent.lab.tables.layout import FAMILIES, family, label_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES, MARKERS = ("-", "--", ":", "-."), "os^D"


class Picture(NamedTuple):
    """A picture of a study.

    Attributes:
      draw: draws on an empty matplotlib `Figure`.
      shows: whether the study has what the picture shows.
    """

    draw: Callable[[Study, "Figure"], None]
    shows: Callable[[Study], bool]


def _style(study: Study, index: int) -> dict[str, Any]:
    """A run's label, its family's colour, and line and marker by its place in the family."""
    families = [family(subject.name) for subject in study.subjects]
    place = families[:index].count(families[index])
    return {
        "label": study.subjects[index].name,
        "color": FAMILIES.get(families[index], "tab:green"),
        "linestyle": LINES[place % len(LINES)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4,
    }


def _finish(panels: Any) -> None:
    for panel in np.ravel(panels):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)


def _band(panel: "Axes", x: np.ndarray, found: Estimate, style: dict[str, Any]) -> None:
    """A line with its interval."""
    panel.plot(x, found.mean, **style)
    panel.fill_between(x, found.low, found.high, color=style["color"], alpha=0.2, linewidth=0)


def _middles(edges: np.ndarray) -> np.ndarray:
    """Where the bins between edges are drawn on a logarithmic axis."""
    return np.sqrt(np.maximum(edges[:-1], edges[1] / 2) * edges[1:])


def draw_position(study: Study, picture: "Figure") -> None:
    """The loss of all runs by position, and the differences to the reference."""
    picture.set_size_inches(12 if study.others() else 7, 4.5)
    panels = picture.subplots(1, 2 if study.others() else 1, squeeze=False)[0]
    x = _middles(figures.edges(study))
    for index in range(len(study.subjects)):
        panels[0].plot(x, figures.by_position(study, index).mean, **_style(study, index))
    panels[0].set_ylabel("bits per token")
    panels[0].legend(frameon=False)
    for index in study.others():
        found = figures.difference_by_position(study, index)
        _band(panels[1], x, found, _style(study, index))
    if study.others():
        _reference_line(study, panels[1])
    for panel in panels:
        panel.set_xscale("log")
        label_logarithmic(panel.xaxis)
        panel.set_xlabel("position in the document, tokens")
    _finish(panels)


def _reference_line(study: Study, panel: "Axes") -> None:
    assert study.reference is not None
    panel.axhline(0.0, color="black", linewidth=0.8)
    panel.set_ylabel(f"bits per token, minus {study.subjects[study.reference].name}")


def draw_kinds(study: Study, picture: "Figure") -> None:
    """What each kind of token adds to the differences to the reference."""
    picture.set_size_inches(7, 4.5)
    panel, others = picture.subplots(), study.others()
    counts, height = figures.kind_counts(study), 0.8 / len(study.others())
    places = np.arange(len(KINDS))
    for number, index in enumerate(others):
        parts = figures.difference_by_kind(study, index).mean * counts / counts.sum()
        style = _style(study, index)
        at = places + (number - (len(others) - 1) / 2) * height
        panel.barh(at, np.nan_to_num(parts), height, color=style["color"], label=style["label"])
    shares = 100 * counts / counts.sum()
    labels = [f"{name}, {share:.0f} %" for name, share in zip(KINDS, shares, strict=True)]
    panel.set_yticks(places, labels)
    panel.invert_yaxis()
    panel.axvline(0.0, color="black", linewidth=0.8)
    assert study.reference is not None
    panel.set_xlabel(f"part of the bits per token, minus {study.subjects[study.reference].name}")
    panel.legend(frameon=False)
    _finish(panel)


def draw_distance(study: Study, picture: "Figure") -> None:
    """The gain by distance to the previous occurrence, and each class's share of it."""
    picture.set_size_inches(12, 4.5)
    left, right = picture.subplots(1, 2, width_ratios=(2, 1))
    for index in study.others():
        edges, counts, gain = figures.gain_by_distance(study, index)
        style, shown = _style(study, index), counts[:-1] >= 10
        x = np.sqrt(edges[:-1] * edges[1:])
        inner = Estimate(*(np.where(shown, part[:-1], np.nan) for part in gain))
        _band(left, x, inner, style)
        _draw_first(left, x[-1] * 4, gain, style)
    _draw_limits(study, left)
    left.axhline(0.0, color="black", linewidth=0.8)
    left.set_xscale("log")
    label_logarithmic(left.xaxis)
    left.set_xlabel("tokens to the previous occurrence of the word")
    left.set_ylabel("gain, bits per word")
    left.legend(frameon=False)
    _draw_classes(study, right)
    _finish((left, right))


def _draw_first(panel: "Axes", x: float, gain: Estimate, style: dict[str, Any]) -> None:
    """First occurrences, to the right of all distances."""
    mean, low, high = (float(part[-1]) for part in gain)
    errors = None if np.isnan(low) else [[mean - low], [high - mean]]
    panel.errorbar([x], [mean], errors, color=style["color"], marker=style["marker"], capsize=3)
    offset = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    panel.annotate("first", (x, mean), **offset)


def _draw_limits(study: Study, panel: "Axes") -> None:
    """Window and reach as vertical lines."""
    limits = {figures.reach(study, index) for index in study.others()}
    for window, reach in limits:
        for x, name in ((window, "window"), (reach, "reach")):
            panel.axvline(x, color="gray", linestyle=":", linewidth=1)
            place = panel.get_xaxis_transform()
            panel.text(x, 0.98, f" {name}", rotation=90, va="top", ha="right", transform=place)


def _draw_classes(study: Study, panel: "Axes") -> None:
    """Bars: the gain in all words of a class, per word of the documents."""
    others, height = study.others(), 0.8 / len(study.others())
    names: list[str] = []
    for number, index in enumerate(others):
        rows = figures.word_classes(study, index)
        *rows, together = rows
        names = [row["class"] for row in rows]
        parts = [
            row["gain"] * row["words"] / together["words"] if row["words"] else 0.0 for row in rows
        ]
        place = np.arange(len(rows)) + number * height
        panel.barh(place, parts, height, color=_style(study, index)["color"], alpha=0.8)
    panel.set_yticks(np.arange(len(names)) + height * (len(others) - 1) / 2, names)
    panel.invert_yaxis()
    panel.axvline(0.0, color="black", linewidth=0.8)
    panel.set_xlabel("part of the gain, bits per word of the text")


def _recurrent(study: Study) -> list[int]:
    return [i for i, found in enumerate(study.findings) if found.interventions]


def draw_interventions(study: Study, picture: "Figure") -> None:
    """What other recurrent states cost, a row for each run with recurrent layers."""
    runs = _recurrent(study)
    picture.set_size_inches(12, 0.5 + 3.8 * len(runs))
    panels = picture.subplots(len(runs), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), index in zip(panels, runs, strict=True):
        names = figures.readings(study)[1:]
        labels = [figures.reading_label(study, name) for name in names]
        for place, name in enumerate(names):
            color = f"C{place}"
            _, cost = figures.intervention(study, index, name)
            left.barh(place, float(cost.mean), color=color, alpha=0.8)
            if not np.isnan(cost.low):
                left.plot([cost.low, cost.high], [place, place], color="black", linewidth=1.2)
            where = figures.intervention_by_position(study, index, name)
            style = {"color": color, "marker": "o", "markersize": 4, "label": labels[place]}
            _band(right, _middles(figures.edges(study)), where, style)
        left.set_yticks(range(len(names)), labels)
        left.invert_yaxis()
        left.axvline(0.0, color="black", linewidth=0.8)
        left.set_title(study.subjects[index].name)
        left.set_xlabel("bits per token lost")
        right.axhline(0.0, color="black", linewidth=0.8)
        right.set_xscale("log")
        label_logarithmic(right.xaxis)
        right.set_xlabel("position in the document, tokens")
        right.set_ylabel("bits per token lost")
        right.legend(frameon=False)
    _finish(panels)


def draw_context(study: Study, picture: "Figure") -> None:
    """The loss by length of the context, and the relative gain of doubling it."""
    contexts = study.contexts
    assert contexts is not None
    picture.set_size_inches(12, 4.5)
    left, right = picture.subplots(1, 2)
    for index, recl in enumerate(contexts.recl):
        style = _style(study, index)
        left.plot(contexts.lengths, contexts.losses[index] / np.log(2), **style)
        told = f"over {contexts.lengths[-2]:,}" if recl is None else f"{recl:,}"
        style["label"] += f": RECL {told}"
        right.plot(contexts.lengths[:-1], 100 * contexts.gains[index], **style)
    left.set_xlabel("tokens of context")
    left.set_ylabel("bits per token")
    right.axhline(100 * THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    right.set_xlabel("tokens of context before they are doubled")
    right.set_ylabel("relative gain on the hard tokens, %")
    for panel, lengths in ((left, contexts.lengths), (right, contexts.lengths[:-1])):
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.legend(frameon=False)
    _finish((left, right))


def _layers(study: Study) -> Iterator[tuple[int, str, LayerStates]]:
    """Index of the run, what to call the layer, and its states."""
    for index in _recurrent(study):
        layers = study.subjects[index].config.model.recurrent_indices
        for layer, states in zip(layers, study.findings[index].states or [], strict=True):
            name = study.subjects[index].name
            yield index, name if len(layers) == 1 else f"{name}, layer {layer}", states


def _layer_color(study: Study, number: int) -> str:
    """The family's colour of the only recurrent layer; several differ among themselves."""
    layers = list(_layers(study))
    return _style(study, layers[0][0])["color"] if len(layers) == 1 else f"C{number}"


def draw_states(study: Study, picture: "Figure") -> None:
    """How much blocks change the states, how long states stay alike, and the gates."""
    picture.set_size_inches(14, 4.5)
    change, later, gates = panels = picture.subplots(1, 3)
    for number, (index, name, states) in enumerate(_layers(study)):
        color, window = _layer_color(study, number), study.subjects[index].config.model.window
        centres, (low, middle, high) = figures.change_by_position(states, window)
        change.plot(centres, middle, color=color, marker="o", markersize=4, label=name)
        change.fill_between(centres, low, high, color=color, alpha=0.2, linewidth=0)
        later.plot(states.lags, states.later, color=color, marker="o", markersize=4, label=name)
        if len(states.similarity):
            alike = f"{name}: with other states"
            later.axhline(states.similarity.mean(), color=color, linestyle=":", label=alike)
        for gate, (kept, added) in enumerate(zip(states.kept, states.added, strict=True)):
            place = f", gate {gate + 1}" if len(states.kept) > 1 else ""
            _draw_gate(gates, kept, f"{name}{place}: kept", color, "-")
            if not np.allclose(kept + added, 1):
                _draw_gate(gates, added, f"{name}{place}: added", color, "--")
    change.set_xscale("log")
    change.set_yscale("log")
    label_logarithmic(change.xaxis)
    label_logarithmic(change.yaxis)
    change.set_xlabel("position in the document, tokens")
    change.set_ylabel("change of the states by a block, |s' - s| / |s|")
    later.set_xscale("log", base=2)
    later.set_xticks(LAGS, list(map(str, LAGS)))
    later.set_xlabel("blocks later")
    later.set_ylabel("cosine of a state with itself")
    later.set_ylim(None, 1.0)
    gates.set_xlim(0, 1)
    gates.set_xlabel("gate of a unit, mean")
    gates.set_ylabel("units")
    for panel in panels:
        panel.legend(frameon=False, fontsize="small")
    _finish(panels)


def _draw_gate(panel: "Axes", shares: np.ndarray, label: str, color: str, line: str) -> None:
    panel.hist(shares, 40, range=(0, 1), histtype="step", color=color, linestyle=line, label=label)


def draw_attention(study: Study, picture: "Figure") -> None:
    """Mean attention of tokens to each state, a panel for each recurrent layer."""
    layers = list(_layers(study))
    picture.set_size_inches(1 + 6 * len(layers), 4.5)
    panels = picture.subplots(1, len(layers), squeeze=False)[0]
    for panel, (_, name, states) in zip(panels, layers, strict=True):
        heads, number = states.attention.shape
        for head in range(heads):
            label = f"head {head}: {states.effective[head]:.3g} by a token"
            label += f", {states.used[head]:.3g} by all"
            descending = np.sort(states.attention[head])[::-1]
            ranks = np.arange(1, number + 1)
            panel.plot(ranks, 100 * descending, label=label, marker="." if number < 65 else "")
        panel.axhline(100 / number, color="black", linestyle=":", linewidth=1, label="equal shares")
        panel.set_ylim(0, None)
        panel.set_title(name)
        panel.set_xlabel("states, most attended first")
        panel.set_ylabel("share of the attention to states, %")
        panel.legend(frameon=False, fontsize="small")
    _finish(panels)


def _always(study: Study) -> bool:
    return True


PICTURES = {
    "position": Picture(draw_position, _always),
    "kinds": Picture(draw_kinds, lambda study: bool(study.others())),
    "distance": Picture(draw_distance, lambda study: bool(study.others())),
    "interventions": Picture(draw_interventions, lambda study: bool(_recurrent(study))),
    "context": Picture(draw_context, lambda study: study.contexts is not None),
    "states": Picture(draw_states, lambda study: bool(_recurrent(study))),
    "attention": Picture(draw_attention, lambda study: bool(_recurrent(study))),
}
