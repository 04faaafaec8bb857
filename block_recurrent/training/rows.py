"""The rows of the paper's Table 1 at any size."""

import dataclasses
from typing import Any, NamedTuple

from block_recurrent.config import ExperimentConfig


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      name: with the sizes it has here.
      paper: the paper's name for it.
      config: everything about the run.
    """

    name: str
    paper: str
    config: ExperimentConfig


def xl(base: ExperimentConfig, windows: int) -> Row:
    """Transformer-XL with a window and segment of some base windows, and as many tokens a step."""
    data, window = base.data, base.model.window * windows
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, window=window, recurrent_layers=(), feedback=False),
        data=dataclasses.replace(
            data,
            segment_length=window,
            batch_size=data.batch_size * data.segment_length // window,
        ),
    )
    return Row(f"XL:{window}", f"XL:{512 * windows}", config)


def slide(base: ExperimentConfig, extra_layers: int = 0) -> Row:
    """The sliding-window model with the base's number of layers, or more."""
    layers = base.model.num_layers + extra_layers
    model = dataclasses.replace(base.model, num_layers=layers, recurrent_layers=(), feedback=False)
    config = dataclasses.replace(base, model=model)
    return Row(f"Slide:{layers}L", f"Slide:{12 + extra_layers}L", config)


def recurrent(base: ExperimentConfig, gate: Any, wiring: Any, *, feedback: bool = False) -> Row:
    """A recurrent model, with feedback or without."""
    model = dataclasses.replace(base.model, gate=gate, wiring=wiring, feedback=feedback)
    name = f"{'Feedback' if feedback else 'Rec'}:{gate}:{wiring}"
    return Row(name, name, dataclasses.replace(base, model=model))


def reference(base: ExperimentConfig) -> Row:
    """The row that step times are relative to: sliding window with one layer more."""
    return slide(base, extra_layers=1)


def table_rows(base: ExperimentConfig) -> list[Row]:
    """All rows of Table 1 at the size of `base`, a configuration with recurrent layers."""
    return [
        *(xl(base, windows) for windows in (1, 2, 4)),
        slide(base),
        reference(base),
        *(recurrent(base, "lstm", wiring) for wiring in ("dual", "single", "skip")),
        *(recurrent(base, "fixed", wiring) for wiring in ("dual", "single", "skip")),
        recurrent(base, "lstm", "single", feedback=True),
        recurrent(base, "fixed", "skip", feedback=True),
    ]
