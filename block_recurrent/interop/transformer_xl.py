"""Parameters by the names of Transformer-XL's release (Dai et al. 2019), as a flat mapping.

As `interop.meliad`: `load_parameters` reads them, `to_parameters` is its inverse and works on
gradients as well. The release keeps a linear map's weight as [out, in], queries, keys and values as
one; the embedding is also the weight of the output.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.baselines.relative import RelativeLayer
from block_recurrent.baselines.transformer_xl import TransformerXL
from block_recurrent.config import TransformerXLConfig
from block_recurrent.interop.named import check_names, with_zeros

# A name, and the parameters that it stands for: kernels [in, out], several of them side by side,
# or one parameter as it is.
Named = Iterator[tuple[str, Sequence[nnx.Param]]]


def _layer(layer: RelativeLayer, prefix: str) -> Named:
    attention, mlp = f"{prefix}.dec_attn", f"{prefix}.pos_ff"
    kernels = [linear.kernel for linear in (layer.queries, layer.keys, layer.values)]
    yield f"{attention}.qkv_net.weight", kernels
    yield f"{attention}.r_net.weight", [layer.distances.kernel]
    yield f"{attention}.o_net.weight", [layer.output.kernel]
    yield f"{attention}.layer_norm.weight", [layer.norm.scale]
    yield f"{attention}.layer_norm.bias", [layer.norm.bias]
    for index, linear in ((0, layer.mlp_hidden), (3, layer.mlp_output)):
        assert linear.bias is not None
        yield f"{mlp}.CoreNet.{index}.weight", [linear.kernel]
        yield f"{mlp}.CoreNet.{index}.bias", [linear.bias]
    yield f"{mlp}.layer_norm.weight", [layer.mlp_norm.scale]
    yield f"{mlp}.layer_norm.bias", [layer.mlp_norm.bias]


def _named(model: TransformerXL) -> Named:
    yield "word_emb.emb_layers.0.weight", [model.embedding]
    yield "crit.out_layers.0.bias", [model.output_bias]
    yield "r_w_bias", [model.content_bias]
    yield "r_r_bias", [model.position_bias]
    for index, layer in enumerate(model.layers):
        yield from _layer(layer, f"layers.{index}")


def _turn(name: str, array: Array) -> Array:
    """Transposes the weight of a linear map, from our layout to the release's and back again."""
    is_linear = name.endswith(".weight") and "norm" not in name and "emb" not in name
    return array.T if is_linear else array


def to_parameters(model: TransformerXL) -> dict[str, Array]:
    """The parameters of `model`, or gradients in its structure, by the authors' names."""
    return {
        name: _turn(name, jnp.concatenate([param[...] for param in params], axis=-1))
        for name, params in _named(model)
    }


def load_parameters(
    parameters: Mapping[str, ArrayLike], config: TransformerXLConfig
) -> TransformerXL:
    """A model with the given parameters.

    Args:
      parameters: arrays by the authors' names, such as "layers.0.dec_attn.qkv_net.weight".
      config: the model they belong to.

    Returns:
      The model, its parameters float32.

    Raises:
      ValueError: names that are missing or unknown, or arrays of the wrong shape, all listed.
    """
    model = with_zeros(lambda rngs: TransformerXL(config, rngs=rngs))
    check_names(parameters, {name: array.shape for name, array in to_parameters(model).items()})
    for name, params in _named(model):
        joined = _turn(name, jnp.asarray(parameters[name], jnp.float32))
        pieces = jnp.split(joined, len(params), axis=-1)
        for param, piece in zip(params, pieces, strict=True):
            param[...] = piece
    return model
