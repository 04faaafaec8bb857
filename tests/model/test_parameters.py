"""Laws of parameters by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.model.parameters import count_parameters, named_parameters, replace_parameters
from tests.helpers import MODELS, assert_equal, random_model

MODEL = random_model(MODELS["feedback_lstm_single"])


def test_every_array_has_a_name_of_its_own():
    named = named_parameters(MODEL)
    leaves = jax.tree.leaves(MODEL)
    assert len(named) == len(leaves)
    assert {id(array) for array in named.values()} == {id(array) for array in leaves}
    assert {"embedding", "norm.scale", "stack.parts.0.layers.keys.kernel"} <= set(named)


def test_replacing_puts_every_array_in_its_place():
    named = named_parameters(MODEL)
    numbers = {name: jnp.full_like(x, i) for i, (name, x) in enumerate(named.items())}
    replaced = replace_parameters(MODEL, numbers)
    assert_equal(named_parameters(replaced), numbers)
    assert_equal(replaced.embedding[...], numbers["embedding"])
    assert_equal(replaced.stack.cells[0].initial[...], numbers["stack.parts.1.layer.cell.initial"])
    assert_equal(named_parameters(replace_parameters(replaced, named)), named)


def test_replacing_leaves_the_module_as_it_was():
    before = {name: np.array(x) for name, x in named_parameters(MODEL).items()}
    replace_parameters(MODEL, {name: -x for name, x in before.items()})
    assert_equal(named_parameters(MODEL), before)


def test_a_missing_path_is_an_error_that_names_it():
    named = named_parameters(MODEL)
    del named["norm.scale"]
    with pytest.raises(KeyError, match="norm.scale"):
        replace_parameters(MODEL, named)


def test_gradients_have_the_names_of_the_parameters():
    gradient = jax.grad(lambda model: jnp.sum(model.embed(jnp.zeros((1, 1), jnp.int32))))(MODEL)
    named = named_parameters(gradient)
    assert {name: x.shape for name, x in named.items()} == {
        name: x.shape for name, x in named_parameters(MODEL).items()
    }
    assert {name for name, x in named.items() if np.any(x)} == {"embedding"}


def test_every_parameter_counts_once_also_before_it_is_made():
    total = sum(x.size for x in jax.tree.leaves(MODEL))
    config = MODEL.config
    abstract = jax.eval_shape(lambda: br.LanguageModel(config, rngs=nnx.Rngs(0)))
    embedding = config.vocab_size * config.model_size
    for model in (MODEL, abstract):
        assert count_parameters(model) == total
        assert count_parameters(model, embedding=False) == total - embedding
