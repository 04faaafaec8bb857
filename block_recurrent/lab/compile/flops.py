"""The useful operations of a model in closed form: its matrix products, each counted once."""

from block_recurrent.config import (
    AnyModelConfig,
    ExperimentConfig,
    LSTMConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)


def step_flops(config: ExperimentConfig) -> int:
    """Useful floating-point operations of a training step on a batch.

    Three times the products of the forward pass: the gradient of a product is two of its size.
    Neither what `model.remat` computes again nor elementwise operations are counted.
    """
    tokens = config.data.batch_size * config.data.segment_length
    forward = forward_flops(config.model, segment=config.data.segment_length)
    return round(3 * tokens * forward)


def forward_flops(
    config: AnyModelConfig, keys: float | None = None, segment: int | None = None
) -> float:
    """Floating-point operations of a token's forward pass, the logits included.

    Args:
      config: of the model.
      keys: number of keys in a token's self-attention; unless given, the mean number it sees.
      segment: tokens of a call, for Transformer-XL; unless given, as many as its memory has.
    """
    if isinstance(config, LSTMConfig):
        size, hidden = config.model_size, config.hidden_size
        multiplications = config.num_layers * (4 * (size + hidden) * hidden + hidden * size)
    elif isinstance(config, ModelConfig):
        multiplications = _block_recurrent(config, keys or config.window)
    else:
        multiplications = _relative(config, keys, segment)
    return 2 * (multiplications + config.model_size * config.vocab_size)  # each with an addition


def _relative(
    config: TransformerXLConfig | TransformerConfig, keys: float | None, segment: int | None
) -> float:
    """Multiplications of a token in all layers, with its share of the memory's keys and values.

    The projection of the distances, once a call, is left out.
    """
    if isinstance(config, TransformerConfig):
        memory, segment, seen = 0, config.segment, (config.segment + 1) / 2
    else:
        memory, segment = config.memory, segment or max(config.memory, 1)
        seen = memory if config.same_length else memory + (segment + 1) / 2
    heads = config.num_heads * config.head_size
    projections = (4 + 2 * memory / segment) * config.model_size * heads
    attention = 3 * heads * (keys or seen)  # keys, distances and values
    return config.num_layers * (projections + attention + 2 * config.model_size * config.mlp_size)


def _block_recurrent(config: ModelConfig, keys: float) -> float:
    """Multiplications of a token in all layers, with its share of the states' updates."""
    size, mlp = config.model_size, config.mlp_size
    states, window = config.num_states, config.window
    heads = config.num_heads * config.head_size
    recurrent = len(config.recurrent_indices)
    plain = config.num_layers - recurrent
    # Keys, values, queries and output; self-attention; MLP.
    token = 4 * size * heads + 2 * heads * keys + 2 * size * mlp
    # Queries and a wider output; attention to the states.
    to_states = 2 * size * heads + 2 * heads * states
    # A state in one block: projections; attention to states and tokens; gates, and an MLP in two of
    # the three wirings (paper, section 3.2).
    gates = {"fixed": 1, "lstm": 3}[config.gate]  # matrices from a gate's input to the states
    wiring = {
        "skip": gates * 2 * heads * size,
        "single": 2 * heads * mlp + gates * mlp * size,
        "dual": gates * 2 * heads * size + size * mlp + gates * mlp * size,
    }[config.wiring]
    state = 4 * size * heads + 2 * heads * (states + 2 * window) + wiring
    reading_states = recurrent + config.feedback * plain
    updates = recurrent * state * states / window
    return config.num_layers * token + reading_states * to_states + updates
