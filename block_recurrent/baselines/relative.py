"""Layers with sinusoidal relative positions, as Transformer-XL has them (Dai et al. 2019).

Section 3.3 of arXiv 1901.02860, with the post-layer-norm of the authors' release. P is the length
of the memory, and T = P + N is the number of keys.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Float32, Int32

from block_recurrent.baselines.base import BaselineModel
from block_recurrent.config import RelativeConfig
from block_recurrent.model.array_types import Activations, Key, Lengths, Logits, Tokens
from block_recurrent.model.attention import reference
from block_recurrent.model.layers import (
    INPUTS,
    OUTPUTS,
    apply_dense,
    dropout,
    product,
    relu,
    split_key,
)
from block_recurrent.model.rematerialization import rematerialize

EPSILON = 1e-5
STD = 0.02  # of the initial values, as in the authors' release


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], mean: float = 0.0) -> nnx.Param:
    """A float32 parameter, drawn from N(mean, 0.02²)."""
    return nnx.Param(mean + STD * jax.random.normal(rngs.params(), shape, jnp.float32))


def linear(inputs: int, outputs: int, *, bias: bool = False, rngs: nnx.Rngs) -> nnx.Linear:
    """A float32 kernel [in, out] from N(0, 0.02²); a bias begins with zeros."""
    initializer = nnx.initializers.normal(STD)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=initializer, rngs=rngs)


def apply_linear(
    x: Float[Array, "... I"], layer: nnx.Linear, *, shared: int
) -> Float[Array, "... O"]:
    """A layer with a bias, in the dtype of `x`; `shared` is as in `apply_dense`."""
    assert layer.bias is not None
    bias = jax.lax.broadcast_to_rank(layer.bias[...].astype(x.dtype), x.ndim)
    return product(x, layer.kernel[...], shared) + bias


class LayerNorm(nnx.Module):
    """`(x - mean) * rsqrt(variance + 1e-5) * scale + bias`, computed in float32.

    Attributes:
      scale: [E] float32, initially from N(1, 0.02²).
      bias: [E] float32, initially 0.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.scale = normal(rngs, (size,), mean=1.0)
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... E"]:
        """The normalised vectors, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normalized = wide * jax.lax.rsqrt(variance + EPSILON)
        scale, bias = (
            jax.lax.broadcast_to_rank(parameter[...], x.ndim)
            for parameter in (self.scale, self.bias)
        )
        return (normalized * scale + bias).astype(x.dtype)


class Surroundings(NamedTuple):
    """What all layers of a call share.

    Attributes:
      encoding: R of the distances P + N - 1, ..., 0.
      content_bias: u, added to queries before their product with keys.
      position_bias: v, added to queries before their product with distances.
      visible: which keys each token sees; the first axis may be 1.
    """

    encoding: Float[Array, "T E"]
    content_bias: Float32[Array, "H D"]
    position_bias: Float32[Array, "H D"]
    visible: Bool[Array, "B N T"]


def encode_distances(number: int, size: int, largest: int | None = None) -> Float32[Array, "T E"]:
    """R of the distances `number - 1`, ..., 1, 0.

    `R(d) = concat(sin(d w), cos(d w))` with `w_t = 10000^(-2t/E)`, t = 0 .. E/2 - 1; distances
    beyond `largest` count as that.
    """
    distances = jnp.arange(number - 1, -1, -1, dtype=jnp.float32)
    if largest is not None:
        distances = jnp.minimum(distances, largest)
    frequencies = 10_000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = jnp.outer(distances, frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def visible_keys(
    length: int, places: int, filled: Int32[Array, "B"], span: int | None = None
) -> Bool[Array, "B N T"]:
    """Which keys each token of a call sees: those that exist, up to its own.

    Args:
      length: N.
      places: P, the length of the memory; its newest entry is the last.
      filled: how many entries of the memory hold something.
      span: at most so many keys, the newest.

    Returns:
      The first axis is 1 where all rows see the same keys.
    """
    own = jnp.expand_dims(places + jnp.arange(length), (0, 2))
    key = jnp.expand_dims(jnp.arange(places + length), (0, 1))
    visible = key <= own
    if span is not None:
        visible &= key > own - span
    if places == 0:
        return visible
    return visible & (key >= places - filled[:, None, None])


def shift_rows(scores: Float32[Array, "... N T"]) -> Float32[Array, "... N T"]:
    """From scores by distance to scores by key.

    Column c of the argument belongs to the distance T - 1 - c, and column j of row i of the result
    to the distance of its key, i + (T - N) - j. Keys after the row's own get arbitrary scores.
    """
    *batch, length, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)])
    return padded.reshape(*batch, keys + 1, length)[..., 1:, :].reshape(scores.shape)


def memories(memory: Float[Array, "B P E"], x: Activations, segment: int) -> Float[Array, "BK P E"]:
    """A layer's memory before each of K segments; no gradient flows from it into the segments.

    A layer's inputs depend on earlier segments through its memory alone, so that all segments may
    go through one layer at a time.

    Args:
      memory: before the first segment.
      x: the layer's inputs.
      segment: N / K, the length of a segment.
    """
    rows, places, size = memory.shape
    stream = jnp.concatenate([memory, jax.lax.stop_gradient(x)], axis=1)
    begin = np.arange(0, x.shape[1], segment)
    each = stream[:, begin[:, None] + np.arange(places)]
    return each.reshape(rows * len(begin), places, size)


class RelativeLayer(nnx.Module):
    """One layer: self-attention and MLP, each followed by the norm of its sum with the input.

    Dropout is where the authors' release has it: on the attention's output, within the MLP and
    after it, and not on the attention probabilities.
    """

    def __init__(self, config: RelativeConfig, *, rngs: nnx.Rngs):
        size, heads = config.model_size, config.num_heads * config.head_size
        self.config = config
        self.queries = linear(size, heads, rngs=rngs)
        self.keys = linear(size, heads, rngs=rngs)
        self.values = linear(size, heads, rngs=rngs)
        self.distances = linear(size, heads, rngs=rngs)
        self.output = linear(heads, size, rngs=rngs)
        self.norm = LayerNorm(size, rngs=rngs)
        self.mlp_hidden = linear(size, config.mlp_size, bias=True, rngs=rngs)
        self.mlp_output = linear(config.mlp_size, size, bias=True, rngs=rngs)
        self.mlp_norm = LayerNorm(size, rngs=rngs)

    def __call__(
        self,
        x: Activations,
        memory: Float[Array, "B P E"],
        around: Surroundings,
        dropout_key: Key | None = None,
    ) -> Activations:
        """The layer's output; `memory` holds the layer's earlier inputs."""
        rate = self.config.dropout
        attention_key, hidden_key, mlp_key = split_key(dropout_key, 3)
        (attended,) = apply_dense(self._attend(x, memory, around), self.output, shared=INPUTS)
        x = self.norm(x + dropout(attended, rate, attention_key))
        hidden = dropout(relu(apply_linear(x, self.mlp_hidden, shared=OUTPUTS)), rate, hidden_key)
        return self.mlp_norm(
            x + dropout(apply_linear(hidden, self.mlp_output, shared=INPUTS), rate, mlp_key)
        )

    def _attend(self, x: Array, memory: Array, around: Surroundings) -> Float[Array, "B N HD"]:
        context = jnp.concatenate([memory, x], axis=1)
        (queries,) = apply_dense(x, self.queries, shared=OUTPUTS)
        keys, values = apply_dense(context, self.keys, self.values, shared=OUTPUTS)
        (distances,) = apply_dense(around.encoding.astype(x.dtype), self.distances, shared=OUTPUTS)
        shape = (self.config.num_heads, self.config.head_size)
        queries, keys, values, distances = (
            y.reshape(*y.shape[:-1], *shape) for y in (queries, keys, values, distances)
        )
        to_keys, to_distances = (
            queries + jax.lax.broadcast_to_rank(bias.astype(x.dtype), queries.ndim)
            for bias in (around.content_bias, around.position_bias)
        )
        einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
        by_key = einsum("bihd,bjhd->bhij", to_keys, keys)
        by_distance = einsum("bihd,jhd->bhij", to_distances, distances)
        scores = (by_key + shift_rows(by_distance)) * self.config.head_size**-0.5
        probabilities = reference.probabilities(scores, around.visible[:, None]).astype(x.dtype)
        heads = jnp.einsum("bhij,bjhd->bihd", probabilities, values)
        return heads.reshape(*heads.shape[:2], -1)


class RelativeModel(BaselineModel):
    """What Transformer-XL and the vanilla Transformer share: everything except the state.

    Initial values are those of the authors' release: kernels, embedding, u and v from N(0, 0.02²),
    scales of norms from N(1, 0.02²), biases 0.

    Attributes:
      content_bias: u, [H, D], of all layers.
      position_bias: v, [H, D], of all layers.
      output_bias: [V], of the logits.
    """

    def __init__(self, config: RelativeConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        heads = (config.num_heads, config.head_size)
        self.embedding = normal(rngs, (config.vocab_size, config.model_size))
        self.layers = nnx.List([RelativeLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.content_bias = normal(rngs, heads)
        self.position_bias = normal(rngs, heads)
        self.output_bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def read(
        self,
        tokens: Tokens,
        memory: Float[Array, "L B P E"],
        filled: Int32[Array, "B"],
        *,
        segment: int | None = None,
        span: int | None = None,
        largest: int | None = None,
        dropout_key: Key | None = None,
    ) -> tuple[Activations, Float[Array, "L B N E"]]:
        """Reads tokens after a memory.

        Args:
          tokens: integers in [0, V).
          memory: earlier inputs of every layer, the newest last.
          filled: how many entries of the memory hold something.
          segment: N is a multiple of it, and segments of this length are read as by one call after
            another, with no gradient between them; None for one segment.
          span: a token sees at most so many keys, the newest.
          largest: distances beyond this one count as it.
          dropout_key: dropout is on when given.

        Returns:
          The features, and the inputs of every layer.
        """
        config, places = self.config, memory.shape[2]
        batch, length = tokens.shape
        each = segment or length
        token_key, encoding_key, output_key, layers_key = split_key(dropout_key, 4)
        encoding = encode_distances(places + each, config.model_size, largest)
        filled = filled[:, None] + np.arange(0, length, each)[None]
        around = Surroundings(
            dropout(encoding, config.dropout, encoding_key),
            self.content_bias[...],
            self.position_bias[...],
            visible_keys(each, places, jnp.minimum(filled, places).reshape(-1), span),
        )
        x = self.embedding[...][tokens].astype(config.dtype) * config.model_size**0.5
        x = dropout(x, config.dropout, token_key)
        call = rematerialize(RelativeLayer.__call__, config.remat)
        inputs, keys = [], split_key(layers_key, config.num_layers)
        for layer, own, key in zip(self.layers, memory, keys, strict=True):
            inputs.append(x)
            before = memories(own, x, each)
            x = call(layer, x.reshape(-1, each, config.model_size), before, around, key)
            x = x.reshape(batch, length, config.model_size)
        return dropout(x, config.dropout, output_key), jnp.stack(inputs)

    def logits(self, features: Activations) -> Logits:
        """The logits of the next token at each position."""
        bias = jax.lax.broadcast_to_rank(self.output_bias[...], features.ndim)
        return super().logits(features) + bias


def newest(
    memory: Float[Array, "L B P E"],
    inputs: Float[Array, "L B N E"],
    lengths: Lengths | None = None,
) -> Float[Array, "L B P E"]:
    """The last P entries of the memory and then the inputs, of which each row has `lengths`."""
    places, length = memory.shape[2], inputs.shape[2]
    if lengths is not None:
        last = partial(jax.lax.dynamic_slice_in_dim, slice_size=places, axis=1)
        both = jnp.concatenate([memory, inputs], axis=2)
        return jax.vmap(last, in_axes=(1, 0), out_axes=1)(both, lengths)
    if length >= places:
        return inputs[:, :, length - places :]
    return jnp.concatenate([memory[:, :, length:], inputs], axis=2)
