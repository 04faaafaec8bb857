"""The rows of the tables at the paper's size, as gin/rows/ describes them, and at any other."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

from block_recurrent import gin_files
from block_recurrent.baselines import lstm_of_size
from block_recurrent.config import ConfigError, ExperimentConfig, LSTMConfig, ModelConfig
from block_recurrent.lab.tables.naming import ROWS, SIZES, row_name
from block_recurrent.model.parameters import count_parameters
from block_recurrent.system.text import did_you_mean
from block_recurrent.training.build import abstract_model

USUAL, REFERENCE = "rec_fixed_skip", "slide_13l"
# The rows of the small table; the long one has all rows, `MAIN` with several seeds.
SHORT = (
    "xl_512",
    "xl_2048",
    "slide_12l",
    "slide_13l",
    "rec_lstm_single",
    "rec_fixed_skip",
    "feedback_fixed_skip",
)
LONG_SEEDS = 3
MAIN = ("xl_2048", "slide_13l", "rec_fixed_skip", "feedback_fixed_skip")


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
      paper: the row's name in the paper's Table 1; empty if it is not in that table.
      config: the configuration of its run.
    """

    paper: str
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """The row's name, with the sizes it has here."""
        return row_name(self.config)

    @property
    def seed(self) -> int:
        """The seed of its parameters."""
        return self.config.training.seed

    def with_later_seeds(self, number: int) -> "TableRow":
        """The same row with both seeds, of parameters and of documents, higher by `number`."""
        config = self.config
        training = dataclasses.replace(config.training, seed=config.training.seed + number)
        data = dataclasses.replace(config.data, seed=config.data.seed + number)
        return self._replace(config=dataclasses.replace(config, training=training, data=data))


@functools.cache
def _at_paper_size(gin: str) -> ExperimentConfig:
    return gin_files.load(["sizes/paper.gin", f"rows/{gin}.gin"], ["model.vocab_size=256"])


def row_at(base: ExperimentConfig, gin: str, *, same_lanes: bool = False) -> TableRow:
    """A row at the size of `base`.

    The row differs from `base` as its file in gin/rows/ differs from Rec:fixed:skip: layers are
    added, other numbers are multiplied.

    Args:
      base: the configuration of the recurrent rows.
      gin: one of `ROWS`.
      same_lanes: XL reads the lanes of `base`, several of its segments a step, and no gradient
        passes from one to the next. Otherwise a step of XL is one segment of more lanes, and has
        as many tokens, as in the paper.
    """
    row = _at_paper_size(gin)
    if isinstance(row.model, ModelConfig):
        return TableRow(ROWS[gin], _scaled(base, row, same_lanes))
    return TableRow("", _older_system(base, row.model))


def _scaled(base: ExperimentConfig, row: ExperimentConfig, same_lanes: bool) -> ExperimentConfig:
    usual, model = vars(_at_paper_size(USUAL).model), row.model
    changes: dict[str, Any] = {"feedback": model.feedback}
    if model.recurrent_layers:
        changes |= {"gate": model.gate, "wiring": model.wiring}
    for name, value in vars(model).items():
        if value == usual[name]:
            continue
        if name == "num_layers":
            value += base.model.num_layers - usual[name]
        elif type(value) is int:
            value = getattr(base.model, name) * value // usual[name]
        changes[name] = value
    data = base.data
    if row.data.segment_length == model.window:
        window = changes.get("window", base.model.window)
        if same_lanes:
            changes["detach_windows"] = True
        else:
            lanes = data.batch_size * data.segment_length // window
            data = dataclasses.replace(data, segment_length=window, batch_size=lanes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **changes), data=data)


def _older_system(base: ExperimentConfig, kind: Any) -> ExperimentConfig:
    """An LSTM, Transformer or Transformer-XL, whose segment and memory are one base window."""
    model = base.model
    training = dataclasses.replace(base.training, clear_states=False, state_passing=0.0)
    base = dataclasses.replace(base, training=training)
    if isinstance(kind, LSTMConfig):
        # Two layers with as many parameters as the reference.
        counterpart = abstract_model(reference(base).config.model)
        size = count_parameters(counterpart, embedding=False)
        shared = ("vocab_size", "model_size", "dropout", "dtype")
        fields = {name: getattr(model, name) for name in shared}
        config = lstm_of_size(size, num_layers=2, **fields)
        # Unclipped, the gradient overflowed with twice the small table's learning rate.
        optimizer = dataclasses.replace(base.optimizer, clip_norm=1.0)
        return dataclasses.replace(base, model=config, optimizer=optimizer)
    names = (vars(kind).keys() & vars(model).keys()) - {"architecture"}
    fields = {name: getattr(model, name) for name in names}
    fields |= {name: model.window for name in ("segment", "memory") if hasattr(kind, name)}
    return dataclasses.replace(base, model=dataclasses.replace(kind, **fields))


def reference(base: ExperimentConfig) -> TableRow:
    """The row that step times are relative to: sliding window with one layer more."""
    return row_at(base, REFERENCE)


def table_rows(base: ExperimentConfig) -> list[TableRow]:
    """All rows of the paper's Table 1 at the size of `base`."""
    return [row for gin in ROWS if (row := row_at(base, gin)).paper]


def small_table_rows(
    base: ExperimentConfig, *, long: bool = False, seeds: int = 1
) -> list[TableRow]:
    """The rows of the small table, which read the same lanes and as much of each in a step.

    Args:
      base: the configuration of the recurrent rows.
      long: all rows, `MAIN` with three seeds at least.
      seeds: of each row.
    """
    rows = {gin: row_at(base, gin, same_lanes=True) for gin in (ROWS if long else SHORT)}
    return [
        row.with_later_seeds(number)
        for gin, row in rows.items()
        for number in range(max(seeds, LONG_SEEDS) if long and gin in MAIN else seeds)
    ]


def row_called(base: ExperimentConfig, name: str) -> TableRow:
    """Returns the row of the small table with a name, at the size of `base`.

    Raises:
      ConfigError: there is no such row.
    """
    rows = small_table_rows(base, long=True)
    for row in rows:
        if row.name == name:
            return row
    raise ConfigError(f"there is no row {name!r}{did_you_mean(name, [row.name for row in rows])}")


@functools.cache
def paper_rows() -> tuple[TableRow, ...]:
    """All rows of the paper's Table 1 at the paper's size."""
    return tuple(table_rows(_at_paper_size(USUAL)))


def paper_row(config: ExperimentConfig) -> TableRow | None:
    """The row of the paper's Table 1 with this architecture and size, or None."""
    if not isinstance(config.model, ModelConfig):
        return None
    return next((row for row in paper_rows() if _shape(row.config) == _shape(config)), None)


def _shape(config: ExperimentConfig) -> Hashable:
    """What makes a row: everything but vocabulary, precision, dropout, batch and optimizer."""
    model = config.model
    sizes = tuple(getattr(model, name) for name in SIZES)
    reach = (model.window, config.data.segment_length, model.positions)
    if not model.recurrent_layers:
        return sizes, reach
    update = (model.num_states, model.gate, model.wiring, model.feedback)
    return sizes, reach, model.recurrent_indices, update, config.training.clear_states
