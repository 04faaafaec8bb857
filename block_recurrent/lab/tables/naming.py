"""The names of rows and columns, and the name of a run, which follows from its configuration."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from block_recurrent.config import (
    ExperimentConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)

# Every row in the order of the tables: its file in gin/rows/, and its name at the paper's size.
# The name up to the colon is the row's family.
ROWS = {
    "lstm": "LSTM",
    "transformer": "Transformer:512",
    "transformer_xl": "Transformer-XL:512",
    "xl_512": "XL:512",
    "xl_1024": "XL:1024",
    "xl_2048": "XL:2048",
    "slide_12l": "Slide:12L",
    "slide_13l": "Slide:13L",
    "rec_lstm_dual": "Rec:lstm:dual",
    "rec_lstm_single": "Rec:lstm:single",
    "rec_lstm_skip": "Rec:lstm:skip",
    "rec_fixed_dual": "Rec:fixed:dual",
    "rec_fixed_single": "Rec:fixed:single",
    "rec_fixed_skip": "Rec:fixed:skip",
    "feedback_lstm_single": "Feedback:lstm:single",
    "feedback_fixed_skip": "Feedback:fixed:skip",
}

# The paper's columns by the corpus's name in lower case and the tokenizer.
COLUMNS = {
    ("pg19", "bytes"): "PG19 bytes",
    ("pg19", "sentencepiece"): "PG19 tokens",
    ("arxiv", "sentencepiece"): "arXiv",
    ("github", "sentencepiece"): "GitHub",
}

# Names of runs do not contain sizes, nor the paths of files.
SIZES = ("num_layers", "model_size", "num_heads", "head_size", "mlp_size")
NOT_NAMED = (*SIZES, "hidden_size", "path", "cache_path", "vocab_path")


def family(row: str) -> str:
    """The family of a row, from its name."""
    return row.partition(" ")[0].partition(":")[0]


def row_name(config: ExperimentConfig) -> str:
    """The name of a run's row, with the sizes of its configuration.

    Rows that the paper's Table 1 does not have are "LSTM", "Transformer:512" by the segment, and
    "Transformer-XL:512" by the memory. The table's own Transformer-XL is "XL:512".
    """
    model = config.model
    if isinstance(model, TransformerXLConfig):
        return f"Transformer-XL:{model.memory}"
    if isinstance(model, TransformerConfig):
        return f"Transformer:{model.segment}"
    if not isinstance(model, ModelConfig):
        return "LSTM"
    if model.recurrent_layers:
        return f"{'Feedback' if model.feedback else 'Rec'}:{model.gate}:{model.wiring}"
    if config.data.segment_length == model.window or model.detach_windows:
        return f"XL:{model.window}"
    return f"Slide:{model.num_layers}L"


def window_of(config: ExperimentConfig) -> int | None:
    """What tables show as the window: W, or Transformer-XL's memory; None for other models."""
    model = config.model
    if isinstance(model, TransformerXLConfig):
        return model.memory
    return model.window if isinstance(model, ModelConfig) else None


def is_recurrent(config: ExperimentConfig) -> bool:
    """Whether the model has block-recurrent layers."""
    return bool(getattr(config.model, "recurrent_layers", ()))


def column(config: ExperimentConfig) -> str:
    """The paper's column, or corpus and tokenizer if the paper has no column for them."""
    name, tokenizer = config.data.corpus_name, config.data.tokenizer
    return COLUMNS.get((name.casefold(), tokenizer), f"{name}, {tokenizer}")


def distinct_names(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Row names; rows of one column that would have the same name say how they differ.

    A name then lists the values that most of these rows do not have. Sizes are not listed: the
    number of parameters shows them.
    """
    names = []
    for config in configs:
        key = row_name(config), column(config)
        alike = [_fields(c) for c in configs if (row_name(c), column(c)) == key]
        own = [
            f"{name.partition('.')[2]} = {value!r}"
            for name, value in _fields(config).items()
            if value not in _commonest([other[name] for other in alike])
        ]
        names.append(f"{key[0]} ({', '.join(own)})" if own else key[0])
    return names


def _commonest(values: Sequence[Hashable]) -> list[Hashable]:
    """The commonest value, or none if two are equally common."""
    (value, count), *others = Counter(values).most_common(2)
    return [value] if not others or others[0][1] < count else []


def _fields(config: ExperimentConfig) -> dict[str, Any]:
    return {
        f"{section}.{name}": value[:8] if name == "vocab_sha256" and value else value
        for section, part in vars(config).items()
        for name, value in vars(part).items()
        if name not in NOT_NAMED
    }
