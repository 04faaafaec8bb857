"""The pictures of the analyses; each draws some of `all_figures` on an empty `Figure`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from block_recurrent.lab.analysis.context_length import THRESHOLD
from block_recurrent.lab.analysis.figures import middles
from block_recurrent.lab.analysis.token_losses import Estimate
from block_recurrent.lab.tables.layout import color_of, label_logarithmic
from block_recurrent.lab.tables.naming import family

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES, MARKERS = ("-", "--", ":", "-."), "os^D"
FEWEST = 10  # words of a distance that is drawn
Data = dict[str, Any]


def pictures_of(data: Data) -> dict[str, Callable[[Data, "Figure"], None]]:
    """The functions that draw what there are figures of, by the picture's name."""
    compared = any(run["difference"] for run in data["runs"])
    recurrent = any(run["states"] for run in data["runs"])
    pictures = {
        "position": (draw_position, True),
        "kinds": (draw_kinds, compared),
        "distance": (draw_distance, compared),
        "interventions": (draw_interventions, recurrent),
        "context": (draw_context, data["context"] is not None),
        "states": (draw_states, recurrent),
        "attention": (draw_attention, recurrent),
    }
    return {name: draw for name, (draw, shown) in pictures.items() if shown}


def _styled(data: Data, having: str = "bits") -> list[tuple[Data, dict[str, Any]]]:
    """The runs that have some figures, each with its label, colour, line and marker.

    The colour is the family's; line and marker are by the run's number in the family.
    """
    found, families = [], [family(run["name"]) for run in data["runs"]]
    for index, run in enumerate(data["runs"]):
        number = families[:index].count(families[index])
        style = {
            "label": run["name"],
            "color": color_of(run["name"]),
            "linestyle": LINES[number % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4,
        }
        if run[having]:
            found.append((run, style))
    return found


def _finish(panels: Any) -> None:
    for panel in np.ravel(panels):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)


def _band(panel: "Axes", x: np.ndarray, found: Estimate, style: dict[str, Any]) -> None:
    """A line with its interval."""
    panel.plot(x, found.mean, **style)
    panel.fill_between(x, found.low, found.high, color=style["color"], alpha=0.2, linewidth=0)


def _by_position(panel: "Axes", label: str = "position in the document, tokens") -> None:
    panel.set_xscale("log")
    label_logarithmic(panel.xaxis)
    panel.set_xlabel(label)


def draw_position(data: Data, picture: "Figure") -> None:
    """The loss of all runs by position, and the differences to the reference."""
    compared = _styled(data, "difference")
    picture.set_size_inches(12 if compared else 7, 4.5)
    panels = picture.subplots(1, 2 if compared else 1, squeeze=False)[0]
    x = middles(data["position_edges"])
    for run, style in _styled(data):
        panels[0].plot(x, run["bits_by_position"].mean, **style)
    panels[0].set_ylabel("bits per token")
    panels[0].legend(frameon=False)
    for run, style in compared:
        _band(panels[1], x, run["difference_by_position"], style)
    for panel in panels[1:]:
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.set_ylabel(f"bits per token, minus {data['reference']}")
    for panel in panels:
        _by_position(panel)
    _finish(panels)


def _bars(
    panel: "Axes", parts: Sequence[tuple[np.ndarray, dict[str, Any]]], names: Sequence[str]
) -> None:
    """Horizontal bars: the values of all runs side by side for each name."""
    rows, height = np.arange(len(names)), 0.8 / len(parts)
    for number, (values, style) in enumerate(parts):
        at = rows + (number - (len(parts) - 1) / 2) * height
        alpha = 1 / (1 + LINES.index(style["linestyle"]))  # tells runs of a family apart
        bar = {"color": style["color"], "alpha": alpha, "label": style["label"]}
        panel.barh(at, np.nan_to_num(values), height, **bar)
    panel.set_yticks(rows, names)
    panel.invert_yaxis()
    panel.axvline(0.0, color="black", linewidth=0.8)


def draw_kinds(data: Data, picture: "Figure") -> None:
    """What each kind of token adds to the differences to the reference."""
    picture.set_size_inches(7, 4.5)
    panel, counts = picture.subplots(), np.array(list(data["kinds"].values()))
    shares = counts / counts.sum()
    parts = [
        (run["difference_by_kind"].mean * counts / counts.sum(), style)
        for run, style in _styled(data, "difference")
    ]
    names = [f"{name}, {share:.0%}" for name, share in zip(data["kinds"], shares, strict=True)]
    _bars(panel, parts, names)
    panel.set_xlabel(f"part of the bits per token, minus {data['reference']}")
    panel.legend(frameon=False)
    _finish(panel)


def draw_distance(data: Data, picture: "Figure") -> None:
    """The gain by distance to the previous occurrence, and each class's share of it."""
    picture.set_size_inches(12, 4.5)
    left, right = picture.subplots(1, 2, width_ratios=(2, 1))
    compared = _styled(data, "words")
    for run, style in compared:
        words = run["words"]
        x = np.sqrt(words["distance_edges"][:-1] * words["distance_edges"][1:])
        gain, enough = words["gain_by_distance"], words["counts_by_distance"][:-1] >= FEWEST
        _band(left, x, Estimate(*(np.where(enough, part[:-1], np.nan) for part in gain)), style)
        _draw_first(left, x[-1] * 4, gain, style)
    for limits in {(run["words"]["window"], run["words"]["reach"]) for run, _ in compared}:
        for x, name in zip(limits, ("window", "reach"), strict=True):
            left.axvline(x, color="gray", linestyle=":", linewidth=1)
            where = {"va": "top", "ha": "right", "transform": left.get_xaxis_transform()}
            left.text(x, 0.98, f" {name}", rotation=90, **where)
    left.axhline(0.0, color="black", linewidth=0.8)
    _by_position(left, "tokens to the previous occurrence of the word")
    left.set_ylabel("gain, bits per word")
    left.legend(frameon=False)
    parts = []
    for run, style in compared:
        *rows, together = run["words"]["classes"]
        values = [row["gain"] * row["words"] / together["words"] for row in rows]
        parts.append((np.array(values), style))
    _bars(right, parts, [row["class"] for row in rows])
    right.set_xlabel("part of the gain, bits per word of the text")
    _finish((left, right))


def _draw_first(panel: "Axes", x: float, gain: Estimate, style: dict[str, Any]) -> None:
    """First occurrences, to the right of all distances."""
    mean, low, high = (float(part[-1]) for part in gain)
    errors = None if np.isnan(low) else [[mean - low], [high - mean]]
    panel.errorbar([x], [mean], errors, color=style["color"], marker=style["marker"], capsize=3)
    offset = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    panel.annotate("first", (x, mean), **offset)


def draw_interventions(data: Data, picture: "Figure") -> None:
    """What other recurrent states cost, a row for each run with recurrent layers."""
    runs = [run for run in data["runs"] if run["interventions"]]
    names, labels = list(data["readings"])[1:], list(data["readings"].values())[1:]
    picture.set_size_inches(12, 0.5 + 3.8 * len(runs))
    panels = picture.subplots(len(runs), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), run in zip(panels, runs, strict=True):
        for row, name in enumerate(names):
            found, color = run["interventions"][name], f"C{row}"
            mean, low, high = map(float, found["difference"])
            left.barh(row, mean, color=color, alpha=0.8)
            if not np.isnan(low):
                left.plot([low, high], [row, row], color="black", linewidth=1.2)
            style = {"color": color, "marker": "o", "markersize": 4, "label": labels[row]}
            _band(right, middles(data["position_edges"]), found["difference_by_position"], style)
        left.set_yticks(range(len(names)), labels)
        left.invert_yaxis()
        left.axvline(0.0, color="black", linewidth=0.8)
        left.set_title(run["name"])
        left.set_xlabel("bits per token lost")
        right.axhline(0.0, color="black", linewidth=0.8)
        _by_position(right)
        right.set_ylabel("bits per token lost")
        right.legend(frameon=False)
    _finish(panels)


def draw_context(data: Data, picture: "Figure") -> None:
    """The loss by length of the context, and the relative gain of doubling it."""
    context = data["context"]
    lengths = context["lengths"]
    picture.set_size_inches(12, 4.5)
    left, right = picture.subplots(1, 2)
    for index, (_, style) in enumerate(_styled(data)):
        recl = context["recl"][index]
        left.plot(lengths, context["bits"][index], **style)
        style["label"] += f": RECL {f'over {lengths[-2]:,}' if recl is None else f'{recl:,}'}"
        right.plot(lengths[:-1], 100 * context["relative_gains"][index], **style)
    left.set_xlabel("tokens of context")
    left.set_ylabel("bits per token")
    right.axhline(100 * THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    right.set_xlabel("tokens of context before they are doubled")
    right.set_ylabel("relative gain on the hard tokens, %")
    for panel, shown in ((left, lengths), (right, lengths[:-1])):
        panel.set_xscale("log", base=2)
        panel.set_xticks(shown, [f"{length:,}" for length in shown])
        panel.legend(frameon=False)
    _finish((left, right))


def _layers(data: Data) -> list[tuple[str, str, Data]]:
    """The name of each recurrent layer, its colour, and its states.

    The colour of a single layer is the family's; several differ among themselves.
    """
    found = [
        (
            run["name"] if len(run["states"]) == 1 else f"{run['name']}, layer {states['layer']}",
            style["color"],
            states,
        )
        for run, style in _styled(data, "states")
        for states in run["states"]
    ]
    if len(found) == 1:
        return found
    return [(name, f"C{number}", states) for number, (name, _, states) in enumerate(found)]


def draw_states(data: Data, picture: "Figure") -> None:
    """How much blocks change the states, how long states stay alike, and the gates."""
    picture.set_size_inches(14, 4.5)
    change, later, gates = panels = picture.subplots(1, 3)
    for name, color, states in _layers(data):
        style = {"color": color, "marker": "o", "markersize": 4, "label": name}
        low, middle, high = states["change_quartiles"]
        _band(change, states["positions"], Estimate(middle, low, high), style)
        later.plot(states["lags"], states["later"], **style)
        if np.isfinite(states["similarity"]):
            alike = f"{name}: with other states"
            later.axhline(states["similarity"], color=color, linestyle=":", label=alike)
        for gate, (kept, added) in enumerate(zip(states["kept"], states["added"], strict=True)):
            label = f"{name}, gate {gate + 1}" if len(states["kept"]) > 1 else name
            shares = {"kept": (kept, "-"), "added": (added, "--")}
            if np.allclose(kept + added, 1):
                del shares["added"]
            for what, (share, line) in shares.items():
                bins = {"bins": 40, "range": (0, 1), "histtype": "step"}
                gates.hist(share, **bins, color=color, linestyle=line, label=f"{label}: {what}")
    change.set_yscale("log")
    label_logarithmic(change.yaxis)
    _by_position(change)
    change.set_ylabel("change of the states by a block, |s' - s| / |s|")
    lags = states["lags"]
    later.set_xscale("log", base=2)
    later.set_xticks(lags, list(map(str, lags)))
    later.set_xlabel("blocks later")
    later.set_ylabel("cosine of a state with itself")
    later.set_ylim(None, 1.0)
    gates.set_xlim(0, 1)
    gates.set_xlabel("gate of a unit, mean")
    gates.set_ylabel("units")
    for panel in panels:
        panel.legend(frameon=False, fontsize="small")
    _finish(panels)


def draw_attention(data: Data, picture: "Figure") -> None:
    """Mean attention of tokens to each state, a panel for each recurrent layer."""
    layers = _layers(data)
    picture.set_size_inches(1 + 6 * len(layers), 4.5)
    panels = picture.subplots(1, len(layers), squeeze=False)[0]
    for panel, (name, _, states) in zip(panels, layers, strict=True):
        number = states["attention"].shape[1]
        for head, shares in enumerate(states["attention"]):
            label = f"head {head}: {states['effective'][head]:.3g} by a token"
            label += f", {states['used'][head]:.3g} by all"
            ranks, marker = np.arange(1, number + 1), "." if number < 65 else ""
            panel.plot(ranks, 100 * np.sort(shares)[::-1], label=label, marker=marker)
        panel.axhline(100 / number, color="black", linestyle=":", linewidth=1, label="equal shares")
        panel.set_ylim(0, None)
        panel.set_title(name)
        panel.set_xlabel("states, most attended first")
        panel.set_ylabel("share of the attention to states, %")
        panel.legend(frameon=False, fontsize="small")
    _finish(panels)
