"""The floating-point operations that a step cannot do without, in closed form.

A multiplication and an addition are two operations. Counted are products with kernels and of
attention over the positions that a query sees, not the hidden ones of a tile; norms, softmax and
gates are left out.
"""

from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.model.parameters import named_parameters
from block_recurrent.training.build import abstract_model


def forward_flops_per_token(config: ModelConfig) -> float:
    """Useful operations of the forward pass for one token, logits included."""
    states_per_token = config.num_states / config.window
    tokens = states = 0
    for name, parameter in named_parameters(abstract_model(config)).items():
        if name.endswith(".kernel"):
            of_states = ".cell." in name and ".token_layer." not in name
            states += parameter.size if of_states else 0
            tokens += 0 if of_states else parameter.size
    recurrent = len(config.recurrent_indices)
    reading = config.num_layers if config.feedback else recurrent
    # Keys that queries see: of tokens in every layer; of states, by states and by tokens.
    token_keys = config.num_layers * config.window + reading * config.num_states
    state_keys = recurrent * (config.num_states + 2 * config.window)
    heads_size = config.num_heads * config.head_size
    tokens += 2 * heads_size * token_keys + config.vocab_size * config.model_size
    states += 2 * heads_size * state_keys
    return 2.0 * (tokens + states_per_token * states)


def step_flops(config: ExperimentConfig) -> float:
    """Useful operations of a training step, forward and backward: three times the forward pass."""
    tokens = config.data.batch_size * config.data.segment_length
    return 3.0 * tokens * forward_flops_per_token(config.model)
