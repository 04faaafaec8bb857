"""Parameters by the names of the authors' release (Meliad), as a flat mapping to arrays.

`load_parameters` reads them into a model and `to_parameters` is its inverse; the latter works on
gradients as well, since those have the structure of the model.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.config import ModelConfig
from block_recurrent.interop.named import check_names, with_zeros
from block_recurrent.model.cell import DualWiring, RecurrentCell, SkipWiring
from block_recurrent.model.gates import FixedGate, LSTMGate
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.positions import T5Bias
from block_recurrent.model.stack import part_ranges
from block_recurrent.model.transformer_layer import SlidingWindowLayer

Named = Iterator[tuple[str, nnx.Param]]


def _projections(side: SlidingWindowLayer | RecurrentCell, prefix: str) -> Named:
    yield f"{prefix}/pre_attn_layernorm/scale", side.norm.scale
    yield f"{prefix}/keys_layer/kernel", side.keys.kernel
    yield f"{prefix}/values_layer/kernel", side.values.kernel
    yield f"{prefix}/queries_layer/kernel", side.queries.kernel
    yield f"{prefix}/attention_scale", side.scale


def _tokens(layer: SlidingWindowLayer, prefix: str) -> Named:
    if isinstance(layer.positions, T5Bias):
        yield f"{prefix}/relative_positions/rel_embedding", layer.positions.table
    yield from _projections(layer, f"{prefix}/tbase/_kvq")
    if layer.state_queries is not None and layer.state_scale is not None:
        yield f"{prefix}/tbase/_kvq/queries2_layer/kernel", layer.state_queries.kernel
        yield f"{prefix}/tbase/attention_scale2", layer.state_scale
    yield f"{prefix}/tbase/post_attn_mlp/output_layer/kernel", layer.output.kernel
    yield f"{prefix}/tbase/pre_ffn_layernorm/scale", layer.mlp_norm.scale
    yield f"{prefix}/tbase/ffn/hidden0/kernel", layer.mlp_hidden.kernel
    yield f"{prefix}/tbase/ffn/output_layer/kernel", layer.mlp_output.kernel


def _gate(gate: FixedGate | LSTMGate, prefix: str) -> Named:
    yield f"{prefix}/output_layer/kernel", gate.output.kernel
    if isinstance(gate, FixedGate):
        yield f"{prefix}/gate_bias", gate.bias
    else:
        yield f"{prefix}/input_gate/kernel", gate.input.kernel
        yield f"{prefix}/input_gate/bias", gate.input_bias
        yield f"{prefix}/forget_gate/kernel", gate.forget.kernel
        yield f"{prefix}/forget_gate/bias", gate.forget_bias


def _wiring(cell: RecurrentCell, prefix: str) -> Named:
    wiring = cell.wiring
    if isinstance(wiring, SkipWiring):
        yield from _gate(wiring.gate, f"{prefix}/post_attn_mlp")
        return
    yield f"{prefix}/ffn/hidden0/kernel", wiring.hidden.kernel
    if isinstance(wiring, DualWiring):
        yield from _gate(wiring.attention_gate, f"{prefix}/post_attn_mlp")
        yield f"{prefix}/pre_ffn_layernorm/scale", wiring.norm.scale
        yield from _gate(wiring.mlp_gate, f"{prefix}/ffn")
    else:
        yield from _gate(wiring.gate, f"{prefix}/ffn")


def _cell(cell: RecurrentCell, prefix: str) -> Named:
    kvq = f"{prefix}/recurrent_tbase/_kvq"
    yield from _tokens(cell.token_layer, prefix)
    yield f"{prefix}/recurrent_initial_state", cell.initial
    yield f"{kvq}/position_embeddings", cell.ids
    yield from _projections(cell, kvq)
    yield f"{kvq}/queries2_layer/kernel", cell.token_queries.kernel
    yield f"{prefix}/recurrent_tbase/attention_scale2", cell.token_scale
    yield from _wiring(cell, f"{prefix}/recurrent_tbase")


def _named(model: LanguageModel, layers: list[SlidingWindowLayer | RecurrentCell]) -> Named:
    yield "embed/embedding", model.embedding
    yield "final_layernorm/scale", model.norm.scale
    for index, layer in enumerate(layers):
        prefix = f"transformer{index}"
        yield from (
            _cell(layer, prefix) if isinstance(layer, RecurrentCell) else _tokens(layer, prefix)
        )


def to_parameters(model: LanguageModel) -> dict[str, Array]:
    """The parameters of `model`, or gradients in its structure, by the authors' names."""
    return {name: param[...] for name, param in _named(model, model.stack.single_layers())}


def load_parameters(parameters: Mapping[str, ArrayLike], config: ModelConfig) -> LanguageModel:
    """A model with the given parameters.

    Args:
      parameters: arrays by the authors' names, such as "transformer0/tbase/ffn/hidden0/kernel".
      config: the model they belong to.

    Returns:
      The model, its parameters float32.

    Raises:
      ValueError: names that are missing or unknown, or arrays of the wrong shape, all listed.
    """
    model = with_zeros(lambda rngs: LanguageModel(config, rngs=rngs))
    layers = model.stack.single_layers()
    named = dict(_named(model, layers))
    check_names(parameters, {name: param[...].shape for name, param in named.items()})
    for name, param in named.items():
        param[...] = jnp.asarray(parameters[name], jnp.float32)
    for part, indices in zip(model.stack.parts, part_ranges(config), strict=True):
        part.replace_layers(layers[indices.start : indices.stop])
    return model
