"""Layers with sinusoidal relative positions, as Transformer-XL has them (Dai et al. 2019).

Section 3.3 of arXiv 1901.02860, with the post-layer-norm of the authors' release. Letters: B batch
rows, N tokens of a call, P places of memory, T = P + N keys, E model size, H heads, D head size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from block_recurrent.config import RelativeConfig
from block_recurrent.model.language_model import tied_logits
from block_recurrent.model.layers import apply_dense, dropout, product, relu
from block_recurrent.model.stack import REMATERIALIZATIONS
from block_recurrent.model.transformer_layer import split_key

EPSILON = 1e-5
STD = 0.02  # of the initial values, as in the authors' release


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], mean: float = 0.0) -> nnx.Param:
    """A float32 parameter, drawn from N(mean, 0.02²)."""
    return nnx.Param(mean + STD * jax.random.normal(rngs.params(), shape, jnp.float32))


def linear(inputs: int, outputs: int, *, bias: bool = False, rngs: nnx.Rngs) -> nnx.Linear:
    """A float32 kernel [in, out] from N(0, 0.02²); a bias begins with zeros."""
    initializer = nnx.initializers.normal(STD)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=initializer, rngs=rngs)


def apply_linear(x: Array, layer: nnx.Linear) -> Array:
    """A layer with a bias, in the dtype of `x` [..., in]."""
    assert layer.bias is not None
    return product(x, layer.kernel[...].astype(x.dtype)) + layer.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean) * rsqrt(variance + 1e-5) * scale + bias`, computed in float32.

    Attributes:
      scale: [E] float32, initially from N(1, 0.02²).
      bias: [E] float32, initially 0.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.scale = normal(rngs, (size,), mean=1.0)
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """[..., E] of any float dtype -> the same shape and dtype."""
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normalized = wide * jax.lax.rsqrt(variance + EPSILON)
        return (normalized * self.scale[...] + self.bias[...]).astype(x.dtype)


class Surroundings(NamedTuple):
    """What all layers of a call share.

    Attributes:
      encoding: R of the distances P + N - 1, ..., 0, [T, E].
      content_bias: u, added to queries where they meet keys, [H, D] float32.
      position_bias: v, added to queries where they meet distances, [H, D] float32.
      visible: bool, broadcasts to [B, N, T].
    """

    encoding: Array
    content_bias: Array
    position_bias: Array
    visible: Array


def encode_distances(number: int, size: int, largest: int | None = None) -> Array:
    """R of the distances `number - 1`, ..., 1, 0: [number, E] float32.

    `R(d) = concat(sin(d w), cos(d w))` with `w_t = 10000^(-2t/E)`, t = 0 .. E/2 - 1; distances
    beyond `largest` count as that.
    """
    distances = jnp.arange(number - 1, -1, -1, dtype=jnp.float32)
    if largest is not None:
        distances = jnp.minimum(distances, largest)
    frequencies = 10_000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = distances[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def visible_keys(length: int, places: int, filled: Array, span: int | None = None) -> Array:
    """Which keys each token of a call sees: those that are there, up to its own.

    Args:
      length: N.
      places: P, of memory; its newest entry is the last.
      filled: [B] int32, how many places hold something.
      span: at most so many keys, the newest.

    Returns:
      Bool, broadcasts to [B, N, P + N].
    """
    own = places + jnp.arange(length)[:, None]
    key = jnp.arange(places + length)
    visible = key <= own
    if span is not None:
        visible &= key > own - span
    if places == 0:
        return visible[None]
    return visible & (key >= places - filled[:, None, None])


def shift_rows(scores: Array) -> Array:
    """From scores by distance to scores by key: [..., N, T] -> [..., N, T].

    Column c of the argument belongs to the distance T - 1 - c, and column j of row i of the result
    to that of its key, i + (T - N) - j. Keys after the row's own get what lies in memory there.
    """
    *batch, length, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)])
    return padded.reshape(*batch, keys + 1, length)[..., 1:, :].reshape(scores.shape)


def memories(memory: Array, x: Array, segment: int) -> Array:
    """What a layer remembers before each of K segments; of these it is without gradient.

    A layer's inputs depend on earlier segments through its memory alone, so that all segments may
    go through one layer at a time.

    Args:
      memory: before the first segment, [B, P, E].
      x: the layer's inputs, [B, K * segment, E].
      segment: its length.

    Returns:
      [B * K, P, E].
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
        self, x: Array, memory: Array, around: Surroundings, dropout_key: Array | None = None
    ) -> Array:
        """x [B, N, E] and the layer's earlier inputs, memory [B, P, E] -> [B, N, E]."""
        rate = self.config.dropout
        attention_key, hidden_key, mlp_key = split_key(dropout_key, 3)
        (attended,) = apply_dense(self._attend(x, memory, around), self.output)
        x = self.norm(x + dropout(attended, rate, attention_key))
        hidden = dropout(relu(apply_linear(x, self.mlp_hidden)), rate, hidden_key)
        return self.mlp_norm(x + dropout(apply_linear(hidden, self.mlp_output), rate, mlp_key))

    def _attend(self, x: Array, memory: Array, around: Surroundings) -> Array:
        """The concatenated heads, [B, N, H * D]."""
        context = jnp.concatenate([memory, x], axis=1)
        (queries,) = apply_dense(x, self.queries)
        keys, values = apply_dense(context, self.keys, self.values)
        (distances,) = apply_dense(around.encoding.astype(x.dtype), self.distances)
        queries, keys, values, distances = map(
            self._split_heads, (queries, keys, values, distances)
        )
        to_keys = queries + around.content_bias.astype(x.dtype)
        to_distances = queries + around.position_bias.astype(x.dtype)
        scores = jnp.einsum(
            "bihd,bjhd->bhij", to_keys, keys, preferred_element_type=jnp.float32
        ) + shift_rows(
            jnp.einsum(
                "bihd,jhd->bhij", to_distances, distances, preferred_element_type=jnp.float32
            )
        )
        scores *= self.config.head_size**-0.5
        masked = jnp.where(around.visible[:, None], scores, jnp.finfo(jnp.float32).min)
        probabilities = jax.nn.softmax(masked, axis=-1).astype(x.dtype)
        heads = jnp.einsum("bhij,bjhd->bihd", probabilities, values)
        return heads.reshape(*heads.shape[:2], -1)

    def _split_heads(self, x: Array) -> Array:
        """[..., H * D] -> [..., H, D]."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_size)


class RelativeModel(nnx.Module):
    """What Transformer-XL and the vanilla Transformer share, all but what is carried.

    Initial values are those of the authors' release: kernels, embedding, u and v from N(0, 0.02²),
    scales of norms from N(1, 0.02²), biases 0.

    Attributes:
      embedding: [V, E], of tokens coming in and going out.
      content_bias: u, [H, D], of all layers.
      position_bias: v, [H, D], of all layers.
      output_bias: [V], of the logits.
    """

    def __init__(self, config: RelativeConfig, *, rngs: nnx.Rngs):
        heads = (config.num_heads, config.head_size)
        self.config = config
        self.embedding = normal(rngs, (config.vocab_size, config.model_size))
        self.layers = nnx.List([RelativeLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.content_bias = normal(rngs, heads)
        self.position_bias = normal(rngs, heads)
        self.output_bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))
        self._rematerialize = REMATERIALIZATIONS[config.remat]

    def read(
        self,
        tokens: Array | np.ndarray,
        memory: Array,
        filled: Array,
        *,
        segment: int | None = None,
        span: int | None = None,
        largest: int | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Array]:
        """Reads tokens [B, N] after a memory.

        Args:
          tokens: integers in [0, V).
          memory: earlier inputs of every layer, the newest last, [L, B, P, E].
          filled: [B] int32, how many places of the memory hold something.
          segment: N is a number of segments of so many tokens, read as by one call after another,
            with no gradient between them; None for one segment.
          span: a token sees at most so many keys, the newest.
          largest: distances beyond this one count as it.
          dropout_key: dropout is on when given.

        Returns:
          The features [B, N, E], and the inputs of every layer, [L, B, N, E].
        """
        config, places = self.config, memory.shape[2]
        batch, length = tokens.shape
        each = segment or length
        token_key, encoding_key, output_key, layers_key = split_key(dropout_key, 4)
        encoding = encode_distances(places + each, config.model_size, largest)
        filled = filled[:, None] + np.arange(0, length, each)
        around = Surroundings(
            dropout(encoding, config.dropout, encoding_key),
            self.content_bias[...],
            self.position_bias[...],
            visible_keys(each, places, jnp.minimum(filled, places).reshape(-1), span),
        )
        x = self.embedding[...][tokens].astype(config.dtype) * config.model_size**0.5
        x = dropout(x, config.dropout, token_key)
        call = self._rematerialize(RelativeLayer.__call__, in_scan=False)
        inputs, keys = [], split_key(layers_key, config.num_layers)
        for layer, own, key in zip(self.layers, memory, keys, strict=True):
            inputs.append(x)
            before = memories(own, x, each)
            x = call(layer, x.reshape(-1, each, config.model_size), before, around, key)
            x = x.reshape(batch, length, config.model_size)
        return dropout(x, config.dropout, output_key), jnp.stack(inputs)

    def __call__(
        self,
        tokens: Array | np.ndarray,
        state: Any,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Any]:
        """Reads tokens [B, N] of every row's document; arguments and results of `Model`."""
        features, state = self.features(
            tokens, state, start_of_document=start_of_document, dropout_key=dropout_key
        )
        return self.logits(features), state

    def features(
        self,
        tokens: Array | np.ndarray,
        state: Any,
        *,
        start_of_document: Array | np.ndarray | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Any]:
        """All but the last product of a call."""
        raise NotImplementedError

    def logits(self, features: Array) -> Array:
        """[B, N, E] -> [B, N, V] float32."""
        tied = tied_logits(features, self.embedding[...].astype(self.config.dtype))
        return tied + self.output_bias[...]


def newest(memory: Array, inputs: Array) -> Array:
    """The last P of the entries [L, B, P, E] and then [L, B, N, E]."""
    places, length = memory.shape[2], inputs.shape[2]
    if length >= places:
        return inputs[:, :, length - places :]
    return jnp.concatenate([memory[:, :, length:], inputs], axis=2)
