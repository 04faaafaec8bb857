"""The pictures of the analyses; each draws some figures of `study` on an empty `Figure`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from block_recurrent.lab.analysis.context_length import THRESHOLD
from block_recurrent.lab.analysis.interventions import NORMAL
from block_recurrent.lab.analysis.states import LAGS
from block_recurrent.lab.analysis.study import Data, middles
from block_recurrent.lab.analysis.token_losses import Estimate
from block_recurrent.lab.tables.layout import LINES, finish, label_logarithmic, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 10  # words of a distance that is drawn
POSITION = "position in the document, tokens"
ZERO = {"color": "black", "linewidth": 0.8}
Style = dict[str, Any]


def pictures_of(data: Data) -> dict[str, Callable[["Figure"], None]]:
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
    return {name: partial(draw, data) for name, (draw, shown) in pictures.items() if shown}


def _styled(data: Data, having: str = "bits") -> list[tuple[Data, Style]]:
    """The runs that have some figures, each with its label, colour, line and marker."""
    names = [run["name"] for run in data["runs"]]
    return [
        (run, style | {"label": run["name"], "markersize": 4})
        for run, style in zip(data["runs"], styles(names), strict=True)
        if run[having]
    ]


def _band(panel: "Axes", x: np.ndarray, found: Estimate, style: Style) -> None:
    """A line with its interval."""
    panel.plot(x, found.mean, **style)
    panel.fill_between(x, found.low, found.high, color=style["color"], alpha=0.2, linewidth=0)


def _logarithmic(panel: "Axes", label: str, lengths: Sequence[int] = ()) -> None:
    """Labels a logarithmic horizontal axis, which has ticks at `lengths` if there are any."""
    panel.set(xscale="log", xlabel=label)
    if lengths:
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
    else:
        label_logarithmic(panel.xaxis)


def _bars(panel: "Axes", names: Sequence[str], parts: Sequence[tuple[np.ndarray, Style]]) -> None:
    """Horizontal bars: the values of all runs side by side for each name."""
    rows, height = np.arange(len(names)), 0.8 / len(parts)
    for number, (values, style) in enumerate(parts):
        at = rows + (number - (len(parts) - 1) / 2) * height
        alpha = 1 / (1 + LINES.index(style["linestyle"]))  # tells runs of a family apart
        bar = {"color": style["color"], "alpha": alpha, "label": style["label"]}
        panel.barh(at, np.nan_to_num(values), height, **bar)
    panel.set_yticks(rows, names)
    panel.invert_yaxis()
    panel.axvline(0.0, **ZERO)


def draw_position(data: Data, picture: "Figure") -> None:
    """The loss of all runs by position, and the differences to the reference."""
    compared = _styled(data, "difference")
    picture.set_size_inches(12 if compared else 7, 4.5)
    panels = picture.subplots(1, 2 if compared else 1, squeeze=False)[0]
    x = middles(data["position_edges"])
    for run, style in _styled(data):
        panels[0].plot(x, run["bits_by_position"].mean, **style)
    panels[0].set_ylabel("bits per token")
    for run, style in compared:
        _band(panels[1], x, run["difference_by_position"], style | {"label": None})
    for panel in panels[1:]:
        panel.axhline(0.0, **ZERO)
        panel.set_ylabel(f"bits per token, minus {data['reference']} (below 0: better)")
    for panel in panels:
        _logarithmic(panel, POSITION)
    finish(panels)


def draw_kinds(data: Data, picture: "Figure") -> None:
    """What each kind of token adds to the differences to the reference."""
    picture.set_size_inches(7, 4.5)
    panel, counts = picture.subplots(), np.array(list(data["kinds"].values()))
    shares = counts / counts.sum()
    names = [f"{name}, {share:.0%}" for name, share in zip(data["kinds"], shares, strict=True)]
    compared = _styled(data, "difference")
    _bars(
        panel, names, [(run["difference_by_kind"].mean * shares, style) for run, style in compared]
    )
    panel.set_xlabel(f"part of the bits per token, minus {data['reference']}")
    finish([panel])


def draw_distance(data: Data, picture: "Figure") -> None:
    """The gain by distance to the previous occurrence, and each class's share of it."""
    picture.set_size_inches(12, 4.5)
    left, right = picture.subplots(1, 2, width_ratios=(2, 1))
    parts, names, limits = [], [], {}
    for run, style in _styled(data, "words"):
        words = run["words"]
        x = np.sqrt(words["distance_edges"][:-1] * words["distance_edges"][1:])
        gain, enough = words["gain_by_distance"], words["counts_by_distance"][:-1] >= FEWEST
        _band(left, x, Estimate(*(np.where(enough, part[:-1], np.nan) for part in gain)), style)
        _draw_first(left, x[-1] * 4, gain, style)
        limits |= {(name, words[name]): None for name in ("window", "reach")}
        *rows, together = words["classes"]
        names = [row["class"] for row in rows]
        values = [row["gain"] * row["words"] / together["words"] for row in rows]
        parts.append((np.array(values), style | {"label": None}))
    for name, limit in limits:
        left.axvline(limit, color="gray", linestyle=":", linewidth=1)
        where = {"va": "top", "ha": "right", "transform": left.get_xaxis_transform()}
        left.text(limit, 0.98, f" {name}", rotation=90, **where)
    left.axhline(0.0, **ZERO)
    _logarithmic(left, "tokens to the previous occurrence of the word")
    left.set_ylabel("gain, bits per word")
    _bars(right, names, parts)
    right.set_xlabel("part of the gain, bits per word of the text")
    finish((left, right))


def _draw_first(panel: "Axes", x: float, gain: Estimate, style: Style) -> None:
    """First occurrences, to the right of all distances."""
    mean, low, high = (float(part[-1]) for part in gain)
    errors = None if np.isnan(low) else [[mean - low], [high - mean]]
    panel.errorbar([x], [mean], errors, color=style["color"], marker=style["marker"], capsize=3)
    offset = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    panel.annotate("first", (x, mean), **offset)


def draw_interventions(data: Data, picture: "Figure") -> None:
    """What other recurrent states cost, a row for each run with recurrent layers."""
    runs = [run for run in data["runs"] if run["interventions"]]
    names = [name for name in runs[0]["interventions"] if name != NORMAL]
    labels = [data["readings"][name] for name in names]
    picture.set_size_inches(12, 0.5 + 3.8 * len(runs))
    panels = picture.subplots(len(runs), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), run in zip(panels, runs, strict=True):
        for row, name in enumerate(names):
            found, color = run["interventions"][name], f"C{row}"
            mean, low, high = map(float, found["difference"])
            left.barh(row, mean, color=color, alpha=0.8)
            left.plot([low, high], [row, row], color="black", linewidth=1.2)
            style = {"color": color, "marker": "o", "markersize": 4, "label": labels[row]}
            _band(right, middles(data["position_edges"]), found["difference_by_position"], style)
        left.set_yticks(range(len(names)), labels)
        left.invert_yaxis()
        left.axvline(0.0, **ZERO)
        left.set(title=run["name"], xlabel="bits per token lost")
        right.axhline(0.0, **ZERO)
        _logarithmic(right, POSITION)
        right.set_ylabel("bits per token lost")
    finish(panels.flat)


def draw_context(data: Data, picture: "Figure") -> None:
    """The loss by length of the context, the relative gain of doubling it, and the remembrance."""
    context = data["context"]
    lengths = context["lengths"]
    picture.set_size_inches(16, 4.5)
    left, right, further = panels = picture.subplots(1, 3)
    for index, (_, style) in enumerate(_styled(data)):
        recl = context["recl"][index]
        left.plot(lengths, context["bits"][index], **style)
        style["label"] += f": RECL {f'at least {lengths[-1]:,}' if recl is None else f'{recl:,}'}"
        right.plot(lengths[:-1], 100 * context["relative_gains"][index], **style)
        further.plot(lengths[:-1], context["remembrance"][index][:-1], **style | {"label": None})
    right.axhline(100 * THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    _logarithmic(left, "tokens of context", lengths)
    _logarithmic(right, "tokens of context before they are doubled", lengths[:-1])
    left.set_ylabel("bits per token")
    _logarithmic(further, "tokens of context", lengths[:-1])
    right.set_ylabel("relative gain on the hard tokens, %")
    further.set_ylabel(f"distance from the prediction with {lengths[-1]:,} tokens")
    finish(panels)


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
    """How large states are and how much blocks change them, how long they stay, and the gates."""
    picture.set_size_inches(12, 9)
    size, change, later, gates = panels = picture.subplots(2, 2).flat
    for name, color, states in _layers(data):
        style = {"color": color, "marker": "o", "markersize": 4, "label": name}
        for panel, figure in ((size, "size"), (change, "change")):
            low, middle, high = states[f"{figure}_quartiles"]
            _band(panel, states["positions"], Estimate(middle, low, high), style)
        later.plot(LAGS, states["later"], **style)
        if np.isfinite(states["similarity"]):
            alike = f"{name}: with other states"
            later.axhline(states["similarity"], color=color, linestyle=":", label=alike)
        _draw_gates(gates, name, color, states)
    change.set(yscale="log", ylabel="change of the states by a block, |s' - s| / |s|")
    label_logarithmic(change.yaxis)
    size.set(ylabel="size of the states, root mean square")
    for panel in (size, change):
        _logarithmic(panel, POSITION)
    _logarithmic(later, "blocks later", LAGS)
    later.set(ylabel="cosine of a state with itself", ylim=(None, 1.0))
    gates.set(xlim=(0, 1), xlabel="gate of a unit, mean", ylabel="units")
    finish(panels, fontsize="small")


def _draw_gates(panel: "Axes", name: str, color: str, states: Data) -> None:
    """What each gate keeps and, unless that is the rest, adds, over units."""
    bins = {"bins": 40, "range": (0, 1), "histtype": "step", "color": color}
    for gate, (kept, added) in enumerate(zip(states["kept"], states["added"], strict=True), 1):
        label = f"{name}, gate {gate}" if len(states["kept"]) > 1 else name
        panel.hist(kept, **bins, linestyle="-", label=f"{label}: kept")
        if not np.allclose(kept + added, 1):
            panel.hist(added, **bins, linestyle="--", label=f"{label}: added")


def draw_attention(data: Data, picture: "Figure") -> None:
    """Mean attention of tokens to each state, a panel for each recurrent layer."""
    layers = _layers(data)
    picture.set_size_inches(1 + 6 * len(layers), 4.5)
    panels = picture.subplots(1, len(layers), squeeze=False)[0]
    for panel, (name, _, states) in zip(panels, layers, strict=True):
        number = states["attention"].shape[1]
        ranks, marker = np.arange(1, number + 1), "." if number < 65 else ""
        for head, shares in enumerate(states["attention"]):
            label = f"head {head}: {states['effective'][head]:.3g} by a token"
            label += f", {states['used'][head]:.3g} by all"
            panel.plot(ranks, 100 * np.sort(shares)[::-1], label=label, marker=marker)
        panel.axhline(100 / number, color="black", linestyle=":", linewidth=1, label="equal shares")
        panel.set(
            title=name,
            xlabel="states, most attended first",
            ylabel="share of the attention to states, %",
            ylim=(0, None),
        )
    finish(panels, fontsize="small")
