"""What tables call a run: the paper's names of rows and columns, from its configuration."""

import functools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from block_recurrent.config import (
    AnyModelConfig,
    ExperimentConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from block_recurrent.lab.tables.rows import TableRow, recurrent_name, table_rows

# The paper's columns by the corpus's name in lower case and the tokenizer.
COLUMNS = {
    ("pg19", "bytes"): "PG19 bytes",
    ("pg19", "sentencepiece"): "PG19 tokens",
    ("arxiv", "sentencepiece"): "arXiv",
    ("github", "sentencepiece"): "GitHub",
}

# Where files lie sets no run apart.
PATHS = ("path", "cache_path", "vocab_path")
SIZES = ("num_layers", "model_size", "num_heads", "head_size", "mlp_size")
NOT_NAMED = (*SIZES, "hidden_size", *PATHS)


def row_name(config: ExperimentConfig) -> str:
    """The name that Table 1 would give a run, with the sizes of this configuration.

    Rows of other models, which Table 1 has not, are "LSTM", "Transformer:512" by the segment, and
    "Transformer-XL:512" by the memory, which is not the table's XL:512.
    """
    model = config.model
    if not isinstance(model, ModelConfig):
        return _baseline_name(model)
    if model.recurrent_layers:
        return recurrent_name(model)
    if config.data.segment_length == model.window or model.detach_windows:
        return f"XL:{model.window}"
    return f"Slide:{model.num_layers}L"


def _baseline_name(model: AnyModelConfig) -> str:
    if isinstance(model, TransformerXLConfig):
        return f"Transformer-XL:{model.memory}"
    return f"Transformer:{model.segment}" if isinstance(model, TransformerConfig) else "LSTM"


def window_of(config: ExperimentConfig) -> int | None:
    """What tables show as the window: W, or Transformer-XL's memory; None for other models."""
    model = config.model
    if isinstance(model, TransformerXLConfig):
        return model.memory
    return model.window if isinstance(model, ModelConfig) else None


def segment_of(config: ExperimentConfig) -> int:
    """What tables show as the segment: as many tokens as gradients pass through at once."""
    model, length = config.model, config.data.segment_length
    if isinstance(model, ModelConfig):
        return model.window if model.detach_windows else length
    return getattr(model, "segment", None) or length


def paper_row(config: ExperimentConfig) -> TableRow | None:
    """The row of the paper's Table 1 that has this architecture at this size, if there is one."""
    if not isinstance(config.model, ModelConfig):
        return None
    return next((row for row in paper_rows() if _shape(row.config) == _shape(config)), None)


@functools.cache
def paper_rows() -> tuple[TableRow, ...]:
    """All rows of Table 1 at the paper's size."""
    # The defaults of the configurations are the paper's sizes.
    model = ModelConfig(vocab_size=256, recurrent_layers=(-3,))
    return tuple(table_rows(ExperimentConfig(model=model)))


def _shape(config: ExperimentConfig) -> Hashable:
    """What makes a row: everything but vocabulary, precision, dropout, batch and optimizer."""
    model = config.model
    sizes = tuple(getattr(model, name) for name in SIZES)
    reach = (model.window, config.data.segment_length, model.positions)
    if not model.recurrent_layers:
        return sizes, reach
    update = (model.num_states, model.gate, model.wiring, model.feedback)
    return sizes, reach, model.recurrent_indices, update, config.training.clear_states


def column(config: ExperimentConfig) -> str:
    """The paper's column, or corpus and tokenizer where the paper has none for them."""
    name, tokenizer = config.data.corpus_name, config.data.tokenizer
    return COLUMNS.get((name.casefold(), tokenizer), f"{name}, {tokenizer}")


def distinct_names(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Row names; those of one column that would be equal tell what sets them apart.

    These are the values that are not those of most of them. Sizes are left to the number of
    parameters.
    """
    names = []
    for config in configs:
        place = row_name(config), column(config)
        alike = [_fields(c) for c in configs if (row_name(c), column(c)) == place]
        own = [
            f"{name.partition('.')[2]} = {value!r}"
            for name, value in _fields(config).items()
            if value != _usual([other[name] for other in alike])
        ]
        names.append(f"{place[0]} ({', '.join(own)})" if own else place[0])
    return names


_NONE_IS_USUAL = object()


def _usual(values: Sequence[Hashable]) -> Hashable:
    """The commonest value, unless another is as common."""
    (value, count), *others = Counter(values).most_common(2)
    return value if not others or others[0][1] < count else _NONE_IS_USUAL


def _fields(config: ExperimentConfig) -> dict[str, Any]:
    return {
        f"{section}.{name}": value[:8] if name == "vocab_sha256" and value else value
        for section, part in vars(config).items()
        for name, value in vars(part).items()
        if name not in NOT_NAMED
    }
