"""Useful operations of a model in closed form: its products, none of them computed twice."""

from block_recurrent.config import ExperimentConfig, ModelConfig

# Matrices from a gate's input to the states.
_GATE_PRODUCTS = {"fixed": 1, "lstm": 3}


def step_flops(config: ExperimentConfig) -> int:
    """Useful floating-point operations of a training step on all lanes.

    Three times the products of the forward pass: the gradient of a product is two of its size. What
    `model.remat` computes again is not counted, nor is anything elementwise.
    """
    tokens = config.data.batch_size * config.data.segment_length
    return round(3 * tokens * forward_flops(config.model))


def forward_flops(config: ModelConfig, keys: int | None = None) -> float:
    """Floating-point operations of a token's forward pass, those of the logits included.

    Args:
      config: of the model.
      keys: how many a token's self-attention counts; the W that it sees unless given.
    """
    recurrent = len(config.recurrent_indices)
    plain = config.num_layers - recurrent
    flops = config.num_layers * _token_flops(config, keys or config.window)
    flops += (recurrent + config.feedback * plain) * _attention_to_states(config)
    flops += recurrent * _state_flops(config) * config.num_states / config.window
    return flops + _product(config.model_size, config.vocab_size)


def _product(inputs: int, outputs: int) -> int:
    """Of a vector and a matrix: a multiplication and an addition for every entry."""
    return 2 * inputs * outputs


def _attention(config: ModelConfig, keys: int) -> int:
    """One query of every head with so many keys, and their values."""
    return 2 * _product(config.num_heads * config.head_size, keys)


def _token_flops(config: ModelConfig, keys: int) -> int:
    """A token in a plain layer: keys, values, queries, self-attention, output and MLP."""
    size, heads = config.model_size, config.num_heads * config.head_size
    projections = 4 * _product(size, heads)
    return projections + _attention(config, keys) + 2 * _product(size, config.mlp_size)


def _attention_to_states(config: ModelConfig) -> int:
    """What a token's attention to the states adds: queries, attention, and a wider output."""
    heads = config.num_heads * config.head_size
    return 2 * _product(config.model_size, heads) + _attention(config, config.num_states)


def _state_flops(config: ModelConfig) -> int:
    """One state in one block: four projections, attention to states and tokens, and the wiring."""
    heads = config.num_heads * config.head_size
    seen = config.num_states + 2 * config.window
    return 4 * _product(config.model_size, heads) + _attention(config, seen) + _wiring_flops(config)


def _wiring_flops(config: ModelConfig) -> int:
    """A state's gates, and its MLP where the wiring has one (paper, section 3.2)."""
    size, heads = config.model_size, 2 * config.num_heads * config.head_size
    gates = _GATE_PRODUCTS[config.gate]
    if config.wiring == "skip":
        return gates * _product(heads, size)
    to_states = gates * _product(config.mlp_size, size)
    if config.wiring == "single":
        return _product(heads, config.mlp_size) + to_states
    return gates * _product(heads, size) + _product(size, config.mlp_size) + to_states
