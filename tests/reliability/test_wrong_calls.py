"""Wrong calls of all that is public: an error of our own that names the argument."""

import functools
import traceback
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.interop.meliad import load_parameters, to_parameters
from tests.helpers import MODELS, layer_config, random_model, random_tokens

CONFIG, LAYER = MODELS["fixed_skip"], layer_config()
LIBRARY = Path(br.__file__).parent


@functools.cache
def right() -> SimpleNamespace:
    """Modules and arguments of right calls: two rows, segments of two blocks."""
    rngs = nnx.Rngs(0)
    model = random_model(CONFIG)
    layer = br.SlidingWindowLayer(LAYER, rngs=rngs)
    recurrent = br.BlockRecurrentLayer(LAYER, rngs=rngs)
    return SimpleNamespace(
        rngs=rngs,
        model=model,
        state=model.initial_state(2),
        tokens=random_tokens(2, 8),
        layer=layer,
        cache=layer.initial_state(2),
        recurrent=recurrent,
        carried=recurrent.initial_state(2),
        x=jnp.zeros((2, 8, 12)),
        start=jnp.zeros(2, bool),
        gate=br.FixedGate(5, 12, rngs=rngs),
        lstm=br.LSTMGate(5, 12, rngs=rngs),
        states=jnp.zeros((2, 3, 12)),
        inputs=jnp.zeros((2, 3, 5)),
        t5=br.T5Bias(2, rngs=rngs),
        rotary=br.Rotary(2),
        heads=jnp.zeros((2, 4, 2, 4)),
        parameters=to_parameters(model),
    )


def continued(r, **options):
    return br.generate(r.model, r.state, r.tokens, **{"max_new_tokens": 2} | options)


def point(r, **fields):
    return br.GenerationState(r.state, r.tokens[:, :4], 1)._replace(**fields)


def loaded(r, value):
    return load_parameters(r.parameters | {"embed/embedding": value}, CONFIG)


def states_of(r, blocks, keys=3, values=3):
    shapes = [(2, blocks, number, 2, 4) for number in (keys, values)]
    return br.KeysValues(*map(jnp.zeros, shapes))


WRONG = {
    "LayerConfig, a name": (lambda r: br.LayerConfig(widow=4), TypeError, "widow"),
    "LayerConfig, a type": (lambda r: br.LayerConfig(window=4.0), TypeError, "window must be int"),
    "LayerConfig, a choice": (lambda r: br.LayerConfig(gate="lstn"), ValueError, "gate.*'lstm'"),
    "ModelConfig, nothing": (lambda r: br.ModelConfig(), TypeError, "vocab_size"),
    "ModelConfig, a list": (
        lambda r: br.ModelConfig(vocab_size=4, recurrent_layers=[1]),
        TypeError,
        "recurrent_layers must be tuple",
    ),
    "LanguageModel, of a layer": (
        lambda r: br.LanguageModel(LAYER, rngs=r.rngs),
        TypeError,
        "config must be a ModelConfig",
    ),
    "LanguageModel, a key for rngs": (
        lambda r: br.LanguageModel(CONFIG, rngs=jax.random.key(0)),
        TypeError,
        "rngs must be an nnx.Rngs",
    ),
    "LanguageModel, no batch": (
        lambda r: r.model.initial_state(True),
        ValueError,
        "batch_size must be a whole number of at least 1, not True",
    ),
    "LanguageModel, exchanged": (
        lambda r: r.model(r.state, r.tokens),
        TypeError,
        "tokens must be an integer array, not ModelState",
    ),
    "LanguageModel, another state": (
        lambda r: r.model(r.tokens, r.carried),
        TypeError,
        "state must be a ModelState, not LayerState",
    ),
    "LanguageModel, no recurrent state": (
        lambda r: r.model(r.tokens, r.state._replace(recurrent=None)),
        TypeError,
        "the recurrent state must be an array, not NoneType",
    ),
    "LanguageModel, the state of other rows": (
        lambda r: r.model(r.tokens, r.model.initial_state(3)),
        ValueError,
        r"cache has shape \(3, 3,",
    ),
    "LanguageModel, starts": (
        lambda r: r.model(r.tokens, r.state, start_of_document=[True, False]),
        TypeError,
        "start_of_document must be a bool array",
    ),
    "LanguageModel, a dropout rate": (
        lambda r: r.model(r.tokens, r.state, dropout_key=0.1),
        TypeError,
        "dropout_key must be one key.*not 0.1",
    ),
    "LanguageModel, several keys": (
        lambda r: r.model(r.tokens, r.state, dropout_key=jax.random.split(jax.random.key(0))),
        TypeError,
        "dropout_key must be one key",
    ),
    "BlockRecurrentLayer, no config": (
        lambda r: br.BlockRecurrentLayer(None, rngs=r.rngs),
        TypeError,
        "config must be a LayerConfig, not None",
    ),
    "BlockRecurrentLayer, unroll": (
        lambda r: br.BlockRecurrentLayer(LAYER, unroll=0, rngs=r.rngs),
        ValueError,
        "unroll must be a whole number",
    ),
    "BlockRecurrentLayer, a cache for a state": (
        lambda r: r.recurrent(r.x, r.cache),
        TypeError,
        "state must be a LayerState, not KeysValues",
    ),
    "BlockRecurrentLayer, a list": (
        lambda r: r.recurrent([[1.0]], r.carried),
        TypeError,
        "x must be an array, not list",
    ),
    "BlockRecurrentLayer, a batch of text": (
        lambda r: r.recurrent.initial_state("2"),
        ValueError,
        "batch_size must be a whole number",
    ),
    "SlidingWindowLayer, no rngs": (
        lambda r: br.SlidingWindowLayer(LAYER, rngs=None),
        TypeError,
        "rngs must be an nnx.Rngs, not None",
    ),
    "SlidingWindowLayer, integers": (
        lambda r: r.layer(r.x.astype(jnp.int32), r.cache),
        TypeError,
        "x must be an array of floats, not of int32",
    ),
    "SlidingWindowLayer, half a block": (
        lambda r: r.layer(r.x[:, :6], r.cache),
        ValueError,
        "segment of 6 tokens is no multiple of the window 4",
    ),
    "SlidingWindowLayer, keys without values": (
        lambda r: r.layer(r.x, r.cache._replace(values=None)),
        TypeError,
        "values of the cache must be an array",
    ),
    "SlidingWindowLayer, states of other blocks": (
        lambda r: r.recurrent.cell.token_layer(r.x, r.cache, states_of(r, blocks=3)),
        ValueError,
        "keys of state_context has shape",
    ),
    "SlidingWindowLayer, fewer values than keys": (
        lambda r: r.recurrent.cell.token_layer(r.x, r.cache, states_of(r, blocks=2, values=2)),
        ValueError,
        "values of state_context has shape",
    ),
    "RecurrentCell, a segment": (
        lambda r: r.recurrent.cell(r.x, r.carried),
        ValueError,
        "a cell reads one block of 4 tokens, not 8",
    ),
    "RecurrentCell, states of another size": (
        lambda r: r.recurrent.cell.project(r.states[..., :5]),
        ValueError,
        r"the recurrent state has shape \(2, 3, 5\)",
    ),
    "RecurrentCell, one window": (
        lambda r: r.recurrent.cell.horizontal(r.states, r.cache),
        ValueError,
        "keys of token_context has shape",
    ),
    "FixedGate, no input": (
        lambda r: br.FixedGate(0, 12, rngs=r.rngs),
        ValueError,
        "input_size must be a whole number of at least 1, not 0",
    ),
    "LSTMGate, a name for a function": (
        lambda r: br.LSTMGate(5, 12, activation="tanh", rngs=r.rngs),
        TypeError,
        "activation must be a function, not 'tanh'",
    ),
    "FixedGate, inputs of another size": (
        lambda r: r.gate(r.states, r.states),
        ValueError,
        r"inputs has shape \(2, 3, 12\), but \[..., 5\]",
    ),
    "LSTMGate, other rows": (
        lambda r: r.lstm(r.states[:1], r.inputs),
        ValueError,
        r"inputs has shape .* states \(1, 3, 12\)",
    ),
    "T5Bias, heads": (
        lambda r: br.T5Bias("2", rngs=r.rngs),
        ValueError,
        "num_heads must be a whole number",
    ),
    "T5Bias, a window": (
        lambda r: r.t5.bias(2.5),
        ValueError,
        "window must be a whole number of at least 1, not 2.5",
    ),
    "Rotary, heads": (lambda r: br.Rotary(-1), ValueError, "num_heads must be"),
    "Rotary, odd heads": (
        lambda r: r.rotary.rotate(r.heads[..., :3], np.arange(4)),
        ValueError,
        "x has shape .* an even D",
    ),
    "Rotary, positions": (
        lambda r: r.rotary.rotate(r.heads, np.arange(3)),
        ValueError,
        r"positions has shape \(3,\), but \[4\]",
    ),
    "RMSNorm, a size": (lambda r: br.RMSNorm(0), ValueError, "size must be a whole number"),
    "RMSNorm, another size": (
        lambda r: br.RMSNorm(12)(r.inputs),
        ValueError,
        r"x has shape \(2, 3, 5\), but \[..., 12\]",
    ),
    "reset, starts that are no array": (
        lambda r: br.reset(r.state, r.state, [True, False], batch_axis=1),
        TypeError,
        "start must be an array, not list",
    ),
    "reset, the axis of a layer": (
        lambda r: br.reset(r.state, r.state, r.start),
        ValueError,
        "start has 2 rows.*batch_axis = 0",
    ),
    "reset, of another kind": (
        lambda r: br.reset(r.carried, r.cache, r.start),
        TypeError,
        "initial must be a LayerState",
    ),
    "reset, of other rows": (
        lambda r: br.reset(r.carried, r.recurrent.initial_state(1), r.start),
        ValueError,
        "initial has shape",
    ),
    "generate, no model": (
        lambda r: br.generate(None, r.state, r.tokens),
        TypeError,
        "model must be a LanguageModel, not NoneType",
    ),
    "generate, no state": (
        lambda r: br.generate(r.model, None, r.tokens),
        TypeError,
        "state must be a ModelState or GenerationState, not NoneType",
    ),
    "generate, text": (
        lambda r: br.generate(r.model, r.state, "once"),
        TypeError,
        "prompt must be integers",
    ),
    "generate, rows of several lengths": (
        lambda r: br.generate(r.model, r.state, [[1, 2], [3]]),
        ValueError,
        "prompt must have rows of one length",
    ),
    "generate, temperature": (
        lambda r: continued(r, temperature="hot"),
        TypeError,
        "temperature must be a number, not 'hot'",
    ),
    "generate, top_p": (lambda r: continued(r, top_p=1.5), ValueError, "top_p must be .* not 1.5"),
    "generate, top_k": (lambda r: continued(r, top_k=2.0), ValueError, "top_k must be .* not 2.0"),
    "generate, seed": (lambda r: continued(r, seed=0.5), TypeError, "seed must be a number"),
    "prefill, ids": (
        lambda r: br.prefill(r.model, r.state, r.tokens + 11),
        ValueError,
        "tokens: token id .* outside the vocabulary of 11",
    ),
    "prefill, beyond the block": (
        lambda r: br.prefill(r.model, point(r, length=4), r.tokens),
        ValueError,
        "length of the state must be from 0 to 3, not 4",
    ),
    "prefill, another window": (
        lambda r: br.prefill(r.model, point(r, tokens=r.tokens), r.tokens),
        ValueError,
        r"tokens of the state has shape \(2, 8\), but \[2, 4\]",
    ),
    "load_parameters, nothing": (
        lambda r: load_parameters(None, CONFIG),
        TypeError,
        "parameters must be a mapping",
    ),
    "load_parameters, of a layer": (
        lambda r: load_parameters(r.parameters, LAYER),
        TypeError,
        "config must be a ModelConfig",
    ),
    "load_parameters, misshapen": (
        lambda r: loaded(r, np.zeros(3)),
        ValueError,
        r"embed/embedding is \(3,\)",
    ),
    "load_parameters, text": (
        lambda r: loaded(r, np.full((11, 12), "x")),
        ValueError,
        "no real numbers: embed/embedding",
    ),
}


def test_there_are_enough():
    assert len(WRONG) >= 30


@pytest.mark.parametrize("call, error, words", WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_an_error_of_our_own_that_names_the_argument(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(right())
    assert caught.type is error
    file = Path(traceback.extract_tb(caught.tb)[-1].filename)
    assert file.is_relative_to(LIBRARY) or "Config.__init__()" in str(caught.value), file
