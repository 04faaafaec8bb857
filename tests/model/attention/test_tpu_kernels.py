"""Kernels, interpreted on a CPU, compute what the reference does: values, gradients, dropout."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from block_recurrent import LanguageModel
from block_recurrent.model.attention import reference
from block_recurrent.model.attention.tpu import kernels
from block_recurrent.model.state import KeysValues
from block_recurrent.model.transformer_layer import SlidingWindowLayer
from tests.helpers import (
    assert_close,
    equations,
    layer_config,
    model_config,
    random_like,
    random_tokens,
    randomize,
    read_with_gradients,
)
from tests.interpreter import python
from tests.model.attention.arguments import RATE, values_and_gradients, window_arguments

TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-2}

attend = functools.partial(kernels.attend, interpret=True)
attend_window = functools.partial(kernels.attend_window, interpret=True)


def state_arguments(queries, keys, dtype="float32", lanes=(2,), heads=2, size=8):
    shapes = [(*lanes, queries, heads, size), *[(*lanes, keys, heads, size)] * 2]
    queries, *context = (x.astype(dtype) for x in random_like([jnp.zeros(s) for s in shapes]))
    return queries, KeysValues(*context)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_window_is_that_of_the_reference(dtype):
    arguments = window_arguments(128, dtype)
    actual = values_and_gradients(attend_window, *arguments)
    assert actual[0].dtype == dtype
    expected = values_and_gradients(reference.attend_window, *arguments)
    assert_close(actual, expected, TOLERANCES[dtype])


def test_windows_of_several_tiles():
    arguments = window_arguments(384, lanes=(1, 3), heads=1)
    expected = values_and_gradients(reference.attend_window, *arguments)
    assert_close(values_and_gradients(attend_window, *arguments), expected)


@pytest.mark.parametrize("window", [512, 2048])
def test_large_windows(window):
    arguments = window_arguments(window, lanes=(1, 1), heads=1)
    assert_close(attend_window(*arguments), reference.attend_window(*arguments))


@pytest.mark.parametrize(
    "blocks, detached, size", [(1, False, 8), (3, True, 128), (12, False, 128), (12, True, 8)]
)
def test_windows_before_one_another(blocks, detached, size):
    """In both layouts, in one step and in several: 12 windows are more than a step has on chip."""
    arguments = window_arguments(128, lanes=(2, blocks), size=size)
    functions = (
        functools.partial(attend, detached=detached)
        for attend in (attend_window, reference.attend_window)
    )
    assert_close(*(values_and_gradients(function, *arguments) for function in functions))


def test_a_fresh_cache_is_attended_to():
    queries, current, previous, bias = window_arguments(128)
    arguments = queries, current, jax.tree.map(jnp.zeros_like, previous), bias
    expected = values_and_gradients(reference.attend_window, *arguments)
    assert_close(values_and_gradients(attend_window, *arguments), expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_states_are_those_of_the_reference(dtype):
    arguments = state_arguments(256, 128, dtype)
    expected = values_and_gradients(reference.attend, *arguments)
    assert_close(values_and_gradients(attend, *arguments), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("queries, keys", [(128, 512), (512, 2048), (2048, 512)])
def test_many_states(queries, keys):
    arguments = state_arguments(queries, keys, lanes=(1,), heads=1)
    assert_close(attend(*arguments), reference.attend(*arguments))


@pytest.mark.parametrize("queries, keys", [(1, 128), (128, 3), (5, 7)])
def test_sizes_without_a_kernel_are_left_to_the_reference(queries, keys):
    arguments = state_arguments(queries, keys)
    assert_close(attend(*arguments), reference.attend(*arguments), 0)


def test_dropout_falls_where_it_does_in_the_reference():
    dropout = {"dropout_rate": RATE, "dropout_key": jax.random.key(3)}
    for window, lanes in ((128, (2, 12)), (256, (2, 2))):  # in several steps, in several rows
        arguments = window_arguments(window, lanes=lanes)
        actual, expected = (
            values_and_gradients(functools.partial(attend, **dropout), *arguments)
            for attend in (attend_window, reference.attend_window)
        )
        assert_close(actual, expected)
    arguments = state_arguments(128, 256)
    expected = reference.attend(*arguments, **dropout)
    assert_close(attend_window(*arguments, None, None, **dropout), expected)


@jax.jit
def read_layer(layer, x, cache):
    y, pull = jax.vjp(lambda x, cache: layer(x, cache)[0], x, cache)
    return y, pull(jnp.sin(y))


def test_a_rotary_layer_with_kernels_is_the_layer_without():
    results = []
    for attention in ("pallas", "xla"):
        config = layer_config(window=128, head_size=8, positions="rotary", attention=attention)
        layer = randomize(lambda rngs, config=config: SlidingWindowLayer(config, rngs=rngs))
        inputs = random_like((jnp.zeros((1, 256, 12)), layer.initial_state(1)))
        results.append(read_layer(layer, *inputs))
    assert_close(*results)


def test_a_model_with_kernels_is_the_model_without():
    """Loss, logits, states, and the gradient of every parameter and of the state."""
    results = []
    for attention in ("pallas", "xla"):
        sizes = {"window": 128, "num_states": 128, "num_heads": 2, "head_size": 128}
        config = model_config(1, num_layers=2, attention=attention, feedback=True, **sizes)
        model = randomize(lambda rngs, config=config: LanguageModel(config, rngs=rngs))
        tokens, state = random_tokens(2, 256), random_like(model.initial_state(2))
        results.append(jax.tree.leaves(read_with_gradients(model, tokens, state)))
    assert_close(*results)


@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_a_layer_that_is_computed_again_does_not_attend_again(remat):
    sizes = {"window": 128, "num_heads": 2, "head_size": 128, "num_layers": 1}
    config = model_config(attention="pallas", remat=remat, **sizes)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    tokens, state = random_tokens(2, 256), model.initial_state(2)
    program = jax.make_jaxpr(jax.grad(lambda model: model(tokens, state)[0].sum()))(model)
    found = list(equations(program.jaxpr))
    # jax 0.10 leaves kernels in the program whose results nothing uses; the compiler drops them.
    used = {id(variable) for equation in found for variable in equation.invars}
    kernels = [
        str(equation.params)
        for equation in found
        if equation.primitive.name == "pallas_call" and used & set(map(id, equation.outvars))
    ]
    for name in ("attention_forward", "attention_backward"):
        assert sum(name in kernel for kernel in kernels) == 1


SEVERAL_DEVICES = """
import json, functools, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from block_recurrent.model.attention.tpu import heads, kernels
from block_recurrent.model.layers import dense, project_to_heads
from block_recurrent.model.state import KeysValues

attend = functools.partial(
    kernels.attend_window, interpret=True, dropout_rate=0.3, dropout_key=jax.random.key(0)
)

def project_and_attend(layers, scale, bias, x, current, previous):
    projected = project_to_heads(x, 2, *layers)
    parts = heads.split_heads(projected, [1.0, scale, None], 2, interpret=True)
    queries, keys, values = (x.reshape(4, 2, 128, 2, size) for x in parts)
    current = KeysValues(current.keys + keys, current.values + values)
    return attend(queries, current, previous, bias)

@jax.jit
def values_and_gradients(*arguments):
    output, pull = jax.vjp(jax.checkpoint(project_and_attend), *arguments)
    return output, pull(jnp.sin(output))

rows, shards, size = map(int, sys.argv[1:])
draw = np.random.default_rng(0).normal
shapes = [(4, 256, 16), *[(4, 2, 128, 2, size)] * 2, *[(4, 128, 2, size)] * 2, (2, 128), (2,)]
x, *others, bias, scale = (jnp.asarray(draw(size=shape), "float32") for shape in shapes)
layers = [dense(16, 2 * size, rngs=nnx.Rngs(seed)) for seed in range(3)]
arguments = layers, scale, bias, x, KeysValues(*others[:2]), KeysValues(*others[2:])
one = values_and_gradients(*arguments)
mesh = Mesh(np.asarray(jax.devices()).reshape(rows, shards), ("lanes", "tensor"))
into_heads, by_head, lanes, windows, cache = (
    NamedSharding(mesh, PartitionSpec(*axes))
    for axes in (
        [None, "tensor"], ["tensor"], ["lanes"],
        ["lanes", None, None, "tensor"], ["lanes", None, "tensor"],
    )
)
arguments = jax.device_put(arguments, (into_heads, by_head, by_head, lanes, windows, cache))
several = values_and_gradients(*arguments)
text = values_and_gradients.lower(*arguments).compile().as_text()
print(json.dumps({
    "devices": len(several[0].sharding.device_set),
    "part": several[0].addressable_shards[0].data.shape,
    "difference": max(
        float(abs(a - b).max() / abs(a).max())
        for a, b in zip(*map(jax.tree.leaves, (one, several)))
    ),
    "moves": sum(text.count(f" {name}(") for name in (
        "all-gather", "all-to-all", "collective-permute",
    )),
}))
"""


@pytest.mark.parametrize("rows, shards, size", [(4, 1, 128), (2, 2, 128), (2, 2, 8)])
def test_devices_take_the_windows_of_their_lanes_and_heads(rows, shards, size):
    figures = json.loads(python(SEVERAL_DEVICES, rows, shards, size, devices=4))
    assert figures["difference"] < 1e-5
    assert (figures["devices"], figures["moves"]) == (4, 0)
    assert figures["part"] == [4 // rows, 2, 128, 2 // shards, size]
