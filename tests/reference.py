"""The Block-Recurrent Transformer (arXiv 2203.07852v3) in float64 NumPy: slow, and easy to read.

The whole stack runs block by block, and attention runs head by head and query by query. There is
no dropout and no gradient. Nothing here is shared with the library that it checks.

Letters: `B` batch rows, `N` tokens of a segment, `W` window and block length, `S` recurrent states,
`E` model size, `H` heads, `D` head size, `M` MLP size, `V` vocabulary; `T` any number of positions,
`Q` queries, `K` keys.

`parameters` maps the authors' names (`golden/README.md`) to arrays. Inside, `p` are all of them in
float64, and `part` those under one prefix, by the rest of their names. `config` is a mapping with
the keys of the golden files' JSON, of which these are read:

    NL, H, D, W   layers, heads, head size, window
    rec           indices of the recurrent layers, negative ones counted from the end
    gate          "bias" (the paper's fixed gate) or "lstm"
    single, skip  wiring of the state update; neither: dual
    feedback      whether the layers that are not recurrent also attend to the recurrent state
    pos           "t5" or "rotary"
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Config = Mapping[str, Any]
Parameters = Mapping[str, Array]


class LayerState(NamedTuple):
    """What one layer carries from block to block, and from segment to segment.

    Attributes:
        keys: normalised keys of the last window, before any rotation, [B, W, H, D].
        values: values of the last window, [B, W, H, D].
        recurrent: recurrent state [B, S, E], or None in a layer that is not recurrent.
    """

    keys: Array
    values: Array
    recurrent: Array | None


class Projections(NamedTuple):
    """What attention needs of T positions, each [B, T, H, D]; `queries2` is for cross-attention."""

    keys: Array
    values: Array
    queries: Array
    queries2: Array | None


# The model.


def initial_state(
    parameters: Parameters, config: Config, batch_size: int
) -> tuple[LayerState, ...]:
    """State at a document start, layer by layer: zero keys and values, learned recurrent state."""
    layers = []
    for layer in range(config["NL"]):
        zeros = np.zeros((batch_size, config["W"], config["H"], config["D"]))
        recurrent = None
        if layer in recurrent_layers(config):
            learned = np.asarray(
                parameters[f"transformer{layer}/recurrent_initial_state"], np.float64
            )
            recurrent = np.stack([learned] * batch_size)
        layers.append(LayerState(zeros, zeros, recurrent))
    return tuple(layers)


def forward(
    parameters: Parameters,
    config: Config,
    tokens: Array,
    state: Sequence[LayerState],
    start_of_document: Array,
) -> tuple[Array, tuple[LayerState, ...]]:
    """Read one segment; return logits [B, N, V] and the state after it, in float64.

    Args:
        parameters: arrays of any float type by the authors' names.
        config: see the head of this file.
        tokens: [B, N] integers, N a multiple of W.
        state: the state after the segment before.
        start_of_document: [B] booleans; where true, the state is forgotten first.
    """
    p = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    carried = reset(state, initial_state(p, config, len(tokens)), start_of_document)
    logits = []
    for block in blocks(tokens, config["W"]):
        block_logits, carried = forward_block(p, config, block, carried)
        logits.append(block_logits)
    return np.concatenate(logits, axis=1), carried


def loss(logits: Array, tokens: Array) -> float:
    """Mean of -log p(tokens[:, 1:]) under logits[:, :-1]; logits [B, N, V], tokens [B, N]."""
    nats = []
    for row_logits, row_tokens in zip(logits, tokens, strict=True):
        for position in range(len(row_tokens) - 1):
            probabilities = softmax(row_logits[position])
            nats.append(-np.log(probabilities[row_tokens[position + 1]]))
    return float(np.mean(nats))


def blocks(tokens: Array, window: int) -> list[Array]:
    """Cut tokens [B, N] into N / W blocks [B, W]; N must be a multiple of W."""
    length = tokens.shape[1]
    if length % window != 0:
        raise ValueError(f"{length} tokens are not a multiple of the window {window}")
    return [np.asarray(tokens[:, i : i + window]) for i in range(0, length, window)]


def recurrent_layers(config: Config) -> list[int]:
    """Indices of the recurrent layers, counted from 0, in ascending order."""
    return sorted(index % config["NL"] for index in config["rec"])


def reset(
    state: Sequence[LayerState], fresh: Sequence[LayerState], start_of_document: Array
) -> tuple[LayerState, ...]:
    """Replace the rows of `state` where `start_of_document` [B] is true by those of `fresh`."""
    layers = []
    for old, new in zip(state, fresh, strict=True):
        keys = select_rows(start_of_document, new.keys, old.keys)
        values = select_rows(start_of_document, new.values, old.values)
        recurrent = None
        if new.recurrent is not None and old.recurrent is not None:
            recurrent = select_rows(start_of_document, new.recurrent, old.recurrent)
        layers.append(LayerState(keys, values, recurrent))
    return tuple(layers)


def select_rows(condition: Array, yes: Array, no: Array) -> Array:
    """Row by row, `yes` [B, ...] where `condition` [B] is true, else `no` [B, ...], as float64."""
    rows = [yes[row] if condition[row] else no[row] for row in range(len(condition))]
    return np.asarray(rows, np.float64)


def forward_block(
    p: Parameters, config: Config, tokens: Array, state: Sequence[LayerState]
) -> tuple[Array, tuple[LayerState, ...]]:
    """One block through all layers: tokens [B, W] to logits [B, W, V] and the next state.

    Every layer reads the states as they were when the block began.
    """
    embedding = p["embed/embedding"]
    x = embedding[tokens]
    states_read = states_read_by_layers(p, config, state)
    layers = []
    for layer in range(config["NL"]):
        x, after = layer_block(p, config, layer, x, state[layer], states_read[layer])
        layers.append(after)
    x = rms(x, p["final_layernorm/scale"])
    return x @ embedding.T / np.sqrt(embedding.shape[1]), tuple(layers)


def states_read_by_layers(
    p: Parameters, config: Config, state: Sequence[LayerState]
) -> list[Projections | None]:
    """For each layer the projections of the states that its tokens attend to, or None.

    A recurrent layer reads its own states. With feedback the others read those of the last
    recurrent layer.
    """
    read: list[Projections | None] = [None] * config["NL"]
    for layer in recurrent_layers(config):
        read[layer] = project_states(p, config, layer, state[layer])
    if config["feedback"]:
        last = read[recurrent_layers(config)[-1]]
        read = [last if own is None else own for own in read]
    return read


def project_states(p: Parameters, config: Config, layer: int, state: LayerState) -> Projections:
    """Projections of `h = rms(s) + ids` for the recurrent states `s` [B, S, E] of `layer`."""
    part = under(p, f"transformer{layer}/recurrent_tbase/")
    assert state.recurrent is not None
    normalised = rms(state.recurrent, part["_kvq/pre_attn_layernorm/scale"])
    return project(part, config, normalised + part["_kvq/position_embeddings"])


def layer_block(
    p: Parameters,
    config: Config,
    layer: int,
    x: Array,
    state: LayerState,
    states_read: Projections | None,
) -> tuple[Array, LayerState]:
    """One block through one layer: tokens [B, W, E] to [B, W, E] and the layer's next state."""
    part = under(p, f"transformer{layer}/tbase/")
    tokens = project(part, config, rms(x, part["_kvq/pre_attn_layernorm/scale"]))
    keys = np.concatenate([state.keys, tokens.keys], axis=1)
    values = np.concatenate([state.values, tokens.values], axis=1)
    heads = self_attention(p, config, layer, tokens.queries, keys, values)
    if states_read is not None:
        heads = np.concatenate([heads, cross_attention(part, tokens, states_read)], axis=-1)
    x = x + heads @ part["post_attn_mlp/output_layer/kernel"]
    x = x + mlp(part, rms(x, part["pre_ffn_layernorm/scale"]))
    recurrent = None
    if state.recurrent is not None:
        assert states_read is not None
        recurrent = next_states(p, config, layer, state.recurrent, states_read, keys, values)
    return x, LayerState(tokens.keys, tokens.values, recurrent)


# The two directions.


def self_attention(
    p: Parameters, config: Config, layer: int, queries: Array, keys: Array, values: Array
) -> Array:
    """Sliding-window attention of the queries [B, W, H, D] of one block; returns [B, W, H*D].

    `keys` and `values` [B, 2W, H, D] belong to the block before and to this one. Positions count
    from the beginning of the block before, as only distances matter.
    """
    window = config["W"]
    key_positions = np.arange(2 * window)
    query_positions = np.arange(window, 2 * window)
    bias = np.zeros((config["H"], window, 2 * window))
    if config["pos"] == "t5":
        table = p[f"transformer{layer}/relative_positions/rel_embedding"]
        bias = t5_bias(table, query_positions, key_positions)
    else:
        queries = rotate(queries, query_positions)
        keys = rotate(keys, key_positions)
    visible = window_mask(query_positions, key_positions, window)
    scale = p[f"transformer{layer}/tbase/_kvq/attention_scale"]
    return attend(queries, keys, values, scale, bias, visible)


def cross_attention(part: Parameters, tokens: Projections, states: Projections) -> Array:
    """Attention of the tokens' second queries [B, W, H, D] to all states; returns [B, W, H*D]."""
    assert tokens.queries2 is not None
    return attend_to_all(tokens.queries2, states.keys, states.values, part["attention_scale2"])


def next_states(
    p: Parameters,
    config: Config,
    layer: int,
    state: Array,
    projected: Projections,
    token_keys: Array,
    token_values: Array,
) -> Array:
    """Recurrent states [B, S, E] after a block, from those before it and their projections.

    `token_keys` and `token_values` [B, 2W, H, D] are those of self-attention, without rotation.
    """
    part = under(p, f"transformer{layer}/recurrent_tbase/")
    assert projected.queries2 is not None
    a = attend_to_all(
        projected.queries, projected.keys, projected.values, part["_kvq/attention_scale"]
    )
    b = attend_to_all(projected.queries2, token_keys, token_values, part["attention_scale2"])
    y = np.concatenate([a, b], axis=-1)
    return update(part, config, state, y)


def update(part: Parameters, config: Config, s: Array, y: Array) -> Array:
    """Wiring of the state update: states [B, S, E] and attention heads [B, S, 2*H*D] to states."""
    gate = fixed_gate if config["gate"] == "bias" else lstm_gate
    if config["single"]:
        hidden = relu(y @ part["ffn/hidden0/kernel"])
        z = np.tanh(hidden @ part["ffn/output_layer/kernel"])
        return gate(under(part, "ffn/"), s, z, hidden)
    u = gate(under(part, "post_attn_mlp/"), s, y @ part["post_attn_mlp/output_layer/kernel"], y)
    if config["skip"]:
        return u
    hidden = relu(rms(u, part["pre_ffn_layernorm/scale"]) @ part["ffn/hidden0/kernel"])
    return gate(under(part, "ffn/"), u, hidden @ part["ffn/output_layer/kernel"], hidden)


def fixed_gate(part: Parameters, s: Array, z: Array, r: Array) -> Array:
    """`s*g + z*(1-g)` with a learned constant g; s and z are [B, S, E], r is not used."""
    del r
    keep = sigmoid(part["gate_bias"])
    return s * keep + z * (1 - keep)


def lstm_gate(part: Parameters, s: Array, z: Array, r: Array) -> Array:
    """`s*f + z*i`, both gates computed from r [B, S, R], what fed the projection that gave z."""
    forget = sigmoid(r @ part["forget_gate/kernel"] + part["forget_gate/bias"] + 1)
    enter = sigmoid(r @ part["input_gate/kernel"] + part["input_gate/bias"] - 1)
    return s * forget + z * enter


# Attention.


def project(part: Parameters, config: Config, h: Array) -> Projections:
    """Keys, values and queries of h [B, T, E]; keys and queries normalised in each head."""

    def heads(name: str) -> Array:
        flat = h @ part[f"_kvq/{name}_layer/kernel"]
        return flat.reshape(*h.shape[:-1], config["H"], config["D"])

    has_queries2 = "_kvq/queries2_layer/kernel" in part
    return Projections(
        keys=l2_normalise(heads("keys")),
        values=heads("values"),
        queries=l2_normalise(heads("queries")),
        queries2=l2_normalise(heads("queries2")) if has_queries2 else None,
    )


def attend(
    queries: Array, keys: Array, values: Array, scale: Array, bias: Array, visible: Array
) -> Array:
    """Attention with logits `(q·k + bias) * |scale|`, over the visible keys alone.

    Args:
        queries: [B, Q, H, D].
        keys: [B, K, H, D].
        values: [B, K, H, D].
        scale: [H].
        bias: [H, Q, K].
        visible: [Q, K] booleans.

    Returns:
        The heads side by side, [B, Q, H*D].
    """
    result = np.zeros(queries.shape)
    for head in range(queries.shape[2]):
        for query in range(queries.shape[1]):
            seen = np.flatnonzero(visible[query])
            dots = np.einsum("bd,bkd->bk", queries[:, query, head], keys[:, seen, head])
            weights = softmax((dots + bias[head, query, seen]) * np.abs(scale[head]))
            result[:, query, head] = np.einsum("bk,bkd->bd", weights, values[:, seen, head])
    return result.reshape(*queries.shape[:2], -1)


def attend_to_all(queries: Array, keys: Array, values: Array, scale: Array) -> Array:
    """`attend` without mask and without bias."""
    _, num_queries, num_heads, _ = queries.shape
    bias = np.zeros((num_heads, num_queries, keys.shape[1]))
    return attend(queries, keys, values, scale, bias, bias[0] == 0)


# Positions.


def window_mask(query_positions: Array, key_positions: Array, window: int) -> Array:
    """[Q, K] booleans: a query sees the `window` positions before it, and not itself."""
    visible = np.zeros((len(query_positions), len(key_positions)), bool)
    for row, query in enumerate(query_positions):
        for column, key in enumerate(key_positions):
            visible[row, column] = query - window <= key < query
    return visible


def t5_bucket(distance: int) -> int:
    """T5 bucket of the distance from a query back to a key: causal, 32 buckets, 128 at most."""
    if distance < 16:
        return max(distance, 0)
    return min(16 + int(np.log(distance / 16) / np.log(128 / 16) * 16), 31)


def t5_bias(table: Array, query_positions: Array, key_positions: Array) -> Array:
    """Bias [H, Q, K] from the table [H, 32]; keys not before the query are given bucket 0."""
    bias = np.zeros((len(table), len(query_positions), len(key_positions)))
    for row, query in enumerate(query_positions):
        for column, key in enumerate(key_positions):
            bias[:, row, column] = table[:, t5_bucket(query - key)]
    return bias


def rotate(x: Array, positions: Array) -> Array:
    """Turn (x_j, x_{j + D/2}) of x [B, T, H, D] by `pi * position / 10000^(j / (D/2))`."""
    half = x.shape[-1] // 2
    rotated = np.zeros(x.shape)
    for index, position in enumerate(positions):
        for j in range(half):
            angle = np.pi * position / 10000 ** (j / half)
            first, second = x[:, index, :, j], x[:, index, :, j + half]
            rotated[:, index, :, j] = first * np.cos(angle) - second * np.sin(angle)
            rotated[:, index, :, j + half] = second * np.cos(angle) + first * np.sin(angle)
    return rotated


# Small parts.


def under(p: Parameters, prefix: str) -> dict[str, Array]:
    """The parameters whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): p[name] for name in p if name.startswith(prefix)}


def mlp(part: Parameters, h: Array) -> Array:
    """`W2 relu(W1 h)`, [B, T, E] to [B, T, E]."""
    return relu(h @ part["ffn/hidden0/kernel"]) @ part["ffn/output_layer/kernel"]


def rms(x: Array, scale: Array) -> Array:
    """Root-mean-square norm over the last axis, with a learned scale."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def l2_normalise(x: Array) -> Array:
    """Divide by the Euclidean length over the last axis."""
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def relu(x: Array) -> Array:
    """The positive part."""
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))
