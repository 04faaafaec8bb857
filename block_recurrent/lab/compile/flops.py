"""Useful operations of a model in closed form: its products, none of them computed twice."""

from block_recurrent.config import (
    AnyModelConfig,
    ExperimentConfig,
    LSTMConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)

# Matrices from a gate's input to the states.
_GATE_PRODUCTS = {"fixed": 1, "lstm": 3}


def step_flops(config: ExperimentConfig) -> int:
    """Useful floating-point operations of a training step on all lanes.

    Three times the products of the forward pass: the gradient of a product is two of its size. What
    `model.remat` computes again is not counted, nor is anything elementwise.
    """
    tokens = config.data.batch_size * config.data.segment_length
    forward = forward_flops(config.model, segment=config.data.segment_length)
    return round(3 * tokens * forward)


def forward_flops(
    config: AnyModelConfig, keys: float | None = None, segment: int | None = None
) -> float:
    """Floating-point operations of a token's forward pass, those of the logits included.

    Args:
      config: of the model.
      keys: how many a token's self-attention counts; those it sees, on the average, unless given.
      segment: tokens of a call, for Transformer-XL; as many as its memory has unless given.
    """
    if isinstance(config, LSTMConfig):
        flops = _lstm_flops(config)
    elif isinstance(config, ModelConfig):
        flops = _stack_flops(config, keys)
    else:
        flops = _relative_flops(config, keys, segment)
    return flops + _product(config.model_size, config.vocab_size)


def _lstm_flops(config: LSTMConfig) -> int:
    """A token in all layers: four gates from input and hidden state, and the projection."""
    size, hidden = config.model_size, config.hidden_size
    return config.num_layers * (4 * _product(size + hidden, hidden) + _product(hidden, size))


def _relative_flops(
    config: TransformerXLConfig | TransformerConfig, keys: float | None, segment: int | None
) -> float:
    """A token in all layers, with its share of the memory's keys and values.

    The projection of the distances, once a call, is left out.
    """
    if isinstance(config, TransformerConfig):
        memory, segment, seen = 0, config.segment, (config.segment + 1) / 2
    else:
        memory, segment = config.memory, segment or max(config.memory, 1)
        seen = memory if config.same_length else memory + (segment + 1) / 2
    heads = config.num_heads * config.head_size
    projections = (4 + 2 * memory / segment) * _product(config.model_size, heads)
    # Keys, distances and values.
    attention = 3 * 2 * heads * (keys or seen)
    mlp = 2 * _product(config.model_size, config.mlp_size)
    return config.num_layers * (projections + attention + mlp)


def _stack_flops(config: ModelConfig, keys: float | None) -> float:
    """A token in all layers of the block-recurrent model, with its share of the states' updates."""
    recurrent = len(config.recurrent_indices)
    plain = config.num_layers - recurrent
    flops = config.num_layers * _token_flops(config, keys or config.window)
    flops += (recurrent + config.feedback * plain) * _attention_to_states(config)
    flops += recurrent * _state_flops(config) * config.num_states / config.window
    return flops


def _product(inputs: int, outputs: int) -> int:
    """Of a vector and a matrix: a multiplication and an addition for every entry."""
    return 2 * inputs * outputs


def _attention(config: ModelConfig, keys: float) -> float:
    """One query of every head with so many keys, and their values."""
    return 4 * config.num_heads * config.head_size * keys


def _token_flops(config: ModelConfig, keys: float) -> float:
    """A token in a plain layer: keys, values, queries, self-attention, output and MLP."""
    size, heads = config.model_size, config.num_heads * config.head_size
    projections = 4 * _product(size, heads)
    return projections + _attention(config, keys) + 2 * _product(size, config.mlp_size)


def _attention_to_states(config: ModelConfig) -> float:
    """What a token's attention to the states adds: queries, attention, and a wider output."""
    heads = config.num_heads * config.head_size
    return 2 * _product(config.model_size, heads) + _attention(config, config.num_states)


def _state_flops(config: ModelConfig) -> float:
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
