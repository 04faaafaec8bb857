"""Tiny baselines with random parameters."""

from typing import Any

from flax import nnx

import block_recurrent as br
from block_recurrent.config import AnyModelConfig
from block_recurrent.training.build import build_model
from tests.helpers import VOCABULARY, randomize

HEADS: dict[str, Any] = {"num_heads": 3, "head_size": 4, "mlp_size": 14}
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "num_layers": 2, "model_size": 10}
CONFIGS: dict[str, AnyModelConfig] = {
    "transformer_xl": br.TransformerXLConfig(**SIZES, **HEADS, memory=5),
    "same_length": br.TransformerXLConfig(**SIZES, **HEADS, memory=5, same_length=True),
    "clamped": br.TransformerXLConfig(**SIZES, **HEADS, memory=7, clamp_length=3),
    "no_memory": br.TransformerXLConfig(**SIZES, **HEADS, memory=0),
    "transformer": br.TransformerConfig(**SIZES, **HEADS, segment=8),
    "lstm": br.LSTMConfig(**SIZES, hidden_size=6),
}


def random_baseline(config: AnyModelConfig, seed: int = 0) -> Any:
    """The model of a configuration with random parameters."""
    return randomize(lambda rngs: build_model(config, rngs), seed)


def initial_baseline(config: AnyModelConfig) -> Any:
    """The model of a configuration with initial parameters."""
    return build_model(config, nnx.Rngs(0))
