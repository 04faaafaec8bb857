"""Laws of the closed form of a model's operations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from block_recurrent.config import ConfigError, LSTMConfig
from block_recurrent.gin_files import load
from block_recurrent.lab.benchmark.benchmark import choose_rows
from block_recurrent.lab.compile.flops import forward_flops, step_flops
from block_recurrent.training.build import abstract_model
from tests.baselines.tiny import CONFIGS as BASELINES
from tests.helpers import MODELS, model_config

# GFLOP a token in training, at the paper's size with a vocabulary of 32,000.
PAPER = {
    "slide_12l": 1.178,
    "xl_512": 1.178,
    "slide_13l": 1.260,
    "xl_2048": 1.405,
    "rec_fixed_skip": 1.254,
    "rec_lstm_dual": 1.379,
    "feedback_fixed_skip": 1.461,
}


@pytest.mark.parametrize("row", PAPER)
def test_rows_of_the_paper(row):
    config = load([f"table1/pg19_tokens/{row}.gin"], needs_data=False)
    tokens = config.data.batch_size * config.data.segment_length
    assert step_flops(config) / tokens / 1e9 == pytest.approx(PAPER[row], abs=0.0006)


def product_flops(jaxpr) -> int:
    """Operations of all products in a traced function, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = [shape[axis] for axis in contracted]
            total += 2 * equation.outvars[0].aval.size * math.prod(inner)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inside in jaxprs_in_params(equation.params):
            total += times * product_flops(inside)
    return total


def forward(config, batch: int = 2, blocks: int = 3):
    """A forward pass on abstract arrays: the function, its arguments, and its tokens."""
    model = abstract_model(config)
    state = jax.eval_shape(lambda model: model.initial_state(batch), model)
    tokens = jax.ShapeDtypeStruct((batch, blocks * config.window), jnp.int32)
    return lambda model, *given: model(*given), (model, tokens, state), tokens.size


@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_products_that_a_forward_pass_takes(name):
    config = dataclasses.replace(MODELS[name], positions="rotary")
    function, arguments, tokens = forward(config)
    taken = product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert taken == forward_flops(config, keys=2 * config.window) * tokens


@pytest.mark.parametrize("changes", [{}, {"gate": "lstm", "wiring": "dual"}, {"feedback": True}])
def test_xla_counts_as_many(changes):
    """XLA counts the body of a loop once, so there is one block; it counts elementwise work too."""
    sizes = {"model_size": 128, "num_heads": 2, "head_size": 64, "mlp_size": 256, "window": 32}
    config = model_config(1, **sizes, num_states=16, scan_layers=False, **changes)
    function, arguments, tokens = forward(config, blocks=1)
    counted = jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(forward_flops(config, keys=64) * tokens, rel=0.05)


def test_what_is_computed_again_and_what_is_hidden_is_not_counted():
    config = load(["table1/pg19_bytes/rec_fixed_skip.gin"], needs_data=False)
    again = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    assert step_flops(config) == step_flops(again)
    assert forward_flops(config.model) < forward_flops(config.model, keys=1024)


@pytest.mark.parametrize("name", BASELINES)
def test_they_are_the_products_of_a_baseline(name):
    config, batch, length = BASELINES[name], 2, 8
    model = abstract_model(config)
    state = jax.eval_shape(lambda model: model.initial_state(batch), model)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    traced = jax.make_jaxpr(lambda model, *given: model(*given))(model, tokens, state)
    if isinstance(config, LSTMConfig):
        keys, distances = None, 0
    else:
        keys = length + getattr(config, "memory", 0)
        heads = config.num_heads * config.head_size
        distances = config.num_layers * keys * 2 * config.model_size * heads
    counted = forward_flops(config, keys=keys, segment=length) * tokens.size + distances
    assert product_flops(traced.jaxpr) == pytest.approx(counted)


def test_the_benchmark_has_rows_of_the_table_alone():
    base = load(["benchmark.gin"], ["model.architecture=lstm"])
    with pytest.raises(ConfigError, match="must be 'block_recurrent', not 'lstm'"):
        choose_rows(base, "XL:2048")
