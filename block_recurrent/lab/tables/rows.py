"""The rows of the paper's Table 1 at any size.

The defaults of the configurations are the paper's sizes, which its names of rows contain.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from block_recurrent.baselines import lstm_of_size
from block_recurrent.config import (
    ExperimentConfig,
    LayerConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.parameters import count_parameters


class TableRow(NamedTuple):
    """A row of the table.

    Attributes:
      name: what the table calls it, with the sizes it has here.
      paper: what the paper calls it; empty where the row is not one of the paper's.
      config: the configuration of its run.
    """

    name: str
    paper: str
    config: ExperimentConfig


def xl(base: ExperimentConfig, windows: int) -> TableRow:
    """Transformer-XL with window and segment of several base windows, and as many tokens a step."""
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
    return TableRow(f"XL:{window}", f"XL:{LayerConfig.window * windows}", config)


def xl_side_by_side(base: ExperimentConfig, windows: int) -> TableRow:
    """Transformer-XL that reads the base's lanes: several of its segments are one of the base's.

    No gradient passes from one window to the next, as between the segments of `xl`, but a step
    reads as many documents as the other rows do, and as much of each.
    """
    window = base.model.window * windows
    model = dataclasses.replace(
        base.model, window=window, recurrent_layers=(), feedback=False, detach_windows=True
    )
    config = dataclasses.replace(base, model=model)
    return TableRow(f"XL:{window}", f"XL:{LayerConfig.window * windows}", config)


def slide(base: ExperimentConfig, extra_layers: int = 0) -> TableRow:
    """The sliding-window model with the base's number of layers, or more."""
    layers = base.model.num_layers + extra_layers
    model = dataclasses.replace(base.model, num_layers=layers, recurrent_layers=(), feedback=False)
    config = dataclasses.replace(base, model=model)
    return TableRow(f"Slide:{layers}L", f"Slide:{ModelConfig.num_layers + extra_layers}L", config)


def recurrent(
    base: ExperimentConfig, gate: Any, wiring: Any, *, feedback: bool = False
) -> TableRow:
    """A recurrent model, with feedback or without."""
    model = dataclasses.replace(base.model, gate=gate, wiring=wiring, feedback=feedback)
    name = recurrent_name(model)
    return TableRow(name, name, dataclasses.replace(base, model=model))


def recurrent_name(model: ModelConfig) -> str:
    """What the table calls a recurrent model of any size, such as "Rec:fixed:skip"."""
    return f"{'Feedback' if model.feedback else 'Rec'}:{model.gate}:{model.wiring}"


def reference(base: ExperimentConfig) -> TableRow:
    """The row that step times are relative to: sliding window with one layer more."""
    return slide(base, extra_layers=1)


def table_rows(
    base: ExperimentConfig, xl_row: Callable[[ExperimentConfig, int], TableRow] = xl
) -> list[TableRow]:
    """All rows of Table 1 at the size of `base`, a configuration with recurrent layers.

    Args:
      base: the configuration of the recurrent rows.
      xl_row: makes the rows of Transformer-XL: `xl`, as in the paper, or `xl_side_by_side`.
    """
    return [
        *(xl_row(base, windows) for windows in (1, 2, 4)),
        slide(base),
        reference(base),
        *(recurrent(base, "lstm", wiring) for wiring in ("dual", "single", "skip")),
        *(recurrent(base, "fixed", wiring) for wiring in ("dual", "single", "skip")),
        recurrent(base, "lstm", "single", feedback=True),
        recurrent(base, "fixed", "skip", feedback=True),
    ]


def lstm(base: ExperimentConfig) -> TableRow:
    """An LSTM of two layers with as many parameters as the reference.

    Its gradient is clipped: unclipped, it overflowed with twice the small table's learning rate.
    """
    model, counterpart = base.model, reference(base).config.model
    shapes = jax.eval_shape(lambda: LanguageModel(counterpart, rngs=nnx.Rngs(0)))
    config = lstm_of_size(
        count_parameters(shapes, embedding=False),
        vocab_size=model.vocab_size,
        num_layers=2,
        model_size=model.model_size,
        dropout=model.dropout,
        dtype=model.dtype,
    )
    optimizer = dataclasses.replace(base.optimizer, clip_norm=1.0)
    return TableRow("LSTM", "", dataclasses.replace(base, model=config, optimizer=optimizer))


def transformer(base: ExperimentConfig) -> TableRow:
    """The vanilla Transformer on segments of one base window."""
    window = base.model.window
    config = TransformerConfig(**_sizes(base.model), segment=window)
    return TableRow(f"Transformer:{window}", "", dataclasses.replace(base, model=config))


def transformer_xl(base: ExperimentConfig) -> TableRow:
    """Transformer-XL as its own paper has it, segment and memory of one base window."""
    window = base.model.window
    config = TransformerXLConfig(**_sizes(base.model), segment=window, memory=window)
    return TableRow(f"Transformer-XL:{window}", "", dataclasses.replace(base, model=config))


def _sizes(model: ModelConfig) -> dict[str, Any]:
    """The fields of the base's model that those of Dai et al. have too."""
    names = ("vocab_size", "num_layers", "model_size", "num_heads", "head_size", "mlp_size")
    return {name: getattr(model, name) for name in (*names, "dropout", "dtype", "remat")}


def small_table_rows(base: ExperimentConfig) -> list[TableRow]:
    """The rows of the small table, older systems first.

    All read the same lanes, as much of each in a step.
    """
    older = [lstm(base), transformer(base), transformer_xl(base)]
    return older + table_rows(base, xl_side_by_side)
