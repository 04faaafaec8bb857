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
        cell=recurrent.cell,
        carried=recurrent.initial_state(2),
        x=jnp.zeros((2, 8, 12)),
        start=jnp.zeros(2, bool),
        gate=br.FixedGate(5, 12, rngs=rngs),
        lstm=br.LSTMGate(5, 12, rngs=rngs),
        states=jnp.zeros((2, 3, 12)),
        inputs=jnp.zeros((2, 3, 5)),
        heads=jnp.zeros((2, 4, 2, 4)),
        parameters=to_parameters(model),
        other_blocks=br.KeysValues(*[jnp.zeros((2, 3, 3, 2, 4))] * 2),
    )


def continued(r, **options):
    return br.generate(r.model, r.state, r.tokens, **{"max_new_tokens": 2} | options)


def from_point(r, **fields):
    point = br.GenerationState(r.state, r.tokens[:, :4], 1)._replace(**fields)
    return br.prefill(r.model, point, r.tokens)


WRONG_TYPES = {
    "widow": lambda r: br.LayerConfig(widow=4),
    "window must be int": lambda r: br.LayerConfig(window=4.0),
    "recurrent_layers must be tuple": lambda r: br.ModelConfig(vocab_size=4, recurrent_layers=[1]),
    "config must be a ModelConfig": lambda r: br.LanguageModel(LAYER, rngs=r.rngs),
    "config must be a LayerConfig": lambda r: br.BlockRecurrentLayer(None, rngs=r.rngs),
    "rngs must be an nnx.Rngs": lambda r: br.LanguageModel(CONFIG, rngs=jax.random.key(0)),
    "tokens must be an array, not ModelState": lambda r: r.model(r.state, r.tokens),
    "tokens must hold integer values": lambda r: r.model(r.tokens.astype("float32"), r.state),
    "state must be a ModelState, not LayerState": lambda r: r.model(r.tokens, r.carried),
    "state.recurrent must be an array, not NoneType": lambda r: r.model(
        r.tokens, r.state._replace(recurrent=None)
    ),
    "start_of_document must be an array, not list": lambda r: r.model(
        r.tokens, r.state, start_of_document=[True, False]
    ),
    "lengths must be an array, not list": lambda r: r.model(r.tokens, r.state, lengths=[8, 4]),
    "dropout_key must be one key.*not 0.1": lambda r: r.model(r.tokens, r.state, dropout_key=0.1),
    "dropout_key must be one key": lambda r: r.model(
        r.tokens, r.state, dropout_key=jax.random.split(jax.random.key(0))
    ),
    "state must be a LayerState, not KeysValues": lambda r: r.recurrent(r.x, r.cache),
    "x must be an array, not list": lambda r: r.recurrent([[1.0]], r.carried),
    "x must hold floating values, not int32": lambda r: r.layer(r.x.astype(jnp.int32), r.cache),
    "cache.values must be an array": lambda r: r.layer(r.x, r.cache._replace(values=None)),
    "activation must be a function": lambda r: br.LSTMGate(5, 12, activation="tanh", rngs=r.rngs),
    "start must be an array, not list": lambda r: br.reset(r.state, r.state, [True, False]),
    "initial must be a LayerState": lambda r: br.reset(r.carried, r.cache, r.start),
    "model must be a LanguageModel": lambda r: br.generate(None, r.state, r.tokens),
    "state must be a ModelState or Gen": lambda r: br.generate(r.model, None, r.tokens),
    "prompt must hold integer values": lambda r: br.generate(r.model, r.state, [["once"]]),
    "temperature must be a number, not 'hot'": lambda r: continued(r, temperature="hot"),
    "seed must be a number": lambda r: continued(r, seed=0.5),
    "parameters must be a mapping": lambda r: load_parameters(None, CONFIG),
}
WRONG_VALUES = {
    "gate.*'lstn'": lambda r: br.LayerConfig(gate="lstn"),
    "batch_size must be a whole number of at least 1": lambda r: r.model.initial_state(True),
    "tokens: token id 13 is outside the vocabulary of 11": lambda r: r.model(
        r.tokens.at[1, 2].set(13), r.state
    ),
    r"state.cache.keys has shape \(3, 3,": lambda r: r.model(r.tokens, r.model.initial_state(3)),
    "segment of 6 tokens is no multiple of the window 4": lambda r: r.layer(r.x[:, :6], r.cache),
    "state_context must be given": lambda r: r.layer(r.x, r.cache, r.other_blocks),
    "state_context.keys has shape": lambda r: r.cell.token_layer(r.x, r.cache, r.other_blocks),
    "a cell reads one block of 4 tokens, not 8": lambda r: r.cell(r.x, r.carried),
    r"states has shape \(2, 3, 5\)": lambda r: r.cell.project(r.states[..., :5]),
    "token_context.keys has shape": lambda r: r.cell.horizontal(r.states, r.cache),
    "input_size must be a whole number": lambda r: br.FixedGate(0, 12, rngs=r.rngs),
    r"inputs has shape \(2, 3, 12\), but \[2, 3, 5\]": lambda r: r.gate(r.states, r.states),
    "inputs has shape": lambda r: r.lstm(r.states[:1], r.inputs),
    "num_heads must be a whole number": lambda r: br.T5Bias("2", rngs=r.rngs),
    "window must be a whole number": lambda r: br.Rotary(2).bias(2.5),
    "an even D": lambda r: br.Rotary(2).rotate(r.heads[..., :3], np.arange(4)),
    r"positions has shape \(3,\), but \[4\]": lambda r: br.Rotary(2).rotate(r.heads, np.arange(3)),
    "size must be a whole number": lambda r: br.RMSNorm(0),
    r"x has shape \(2, 3, 5\), but \[..., 12\]": lambda r: br.RMSNorm(12)(r.inputs),
    "start has 2 rows.*batch_axis = 0": lambda r: br.reset(r.state, r.state, r.start),
    "initial.cache.keys has shape": lambda r: br.reset(
        r.carried, r.recurrent.initial_state(1), r.start
    ),
    "prompt must have rows of one length": lambda r: br.generate(r.model, r.state, [[1, 2], [3]]),
    "lengths must be from 0 to 8, not 9": lambda r: r.model(
        r.tokens, r.state, lengths=np.array([8, 9])
    ),
    "lengths: 6 is no multiple of the window 4.*`prefill`": lambda r: r.model(
        r.tokens, r.state, lengths=np.array([8, 6])
    ),
    "top_p must be .* not 1.5": lambda r: continued(r, top_p=1.5),
    "top_k must be .* not 2.0": lambda r: continued(r, top_k=2.0),
    "token id .* outside the vocabulary of 11": lambda r: br.prefill(
        r.model, r.state, r.tokens + 11
    ),
    "length of the state must be from 0 to 3, not 4": lambda r: from_point(r, length=4),
    r"tokens of the state has shape \(2, 8\)": lambda r: from_point(r, tokens=r.tokens),
    r"embed/embedding is \(3,\)": lambda r: load_parameters(
        r.parameters | {"embed/embedding": np.zeros(3)}, CONFIG
    ),
}
WRONG = [(TypeError, *item) for item in WRONG_TYPES.items()]
WRONG += [(ValueError, *item) for item in WRONG_VALUES.items()]


@pytest.mark.parametrize("error, words, call", WRONG, ids=[words for _, words, _ in WRONG])
def test_a_wrong_call_is_an_error_of_our_own_that_names_the_argument(error, words, call):
    with pytest.raises(error, match=words) as caught:
        call(right())
    assert caught.type is error
    file = Path(traceback.extract_tb(caught.tb)[-1].filename)
    assert file.is_relative_to(LIBRARY) or "Config.__init__()" in str(caught.value), file
