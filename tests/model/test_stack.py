"""Laws of the recurrent layer: a scan of the cell, with only the state update inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.model.attention import built_for
from tests.helpers import (
    MODELS,
    assert_close,
    equations,
    layer_config,
    model_config,
    random_like,
    random_model,
    randomize,
)

LENGTH, WINDOW = 12, 4


def make(**changes):
    config = layer_config(**changes)
    layer = randomize(lambda rngs: br.BlockRecurrentLayer(config, rngs=rngs))
    x, state = random_like((jnp.zeros((2, LENGTH, 12)), layer.initial_state(2)))
    return layer, x, state


def loop(layer, x, state):
    """The layer as a Python loop over its cell."""
    outputs = []
    for block in jnp.split(x, LENGTH // WINDOW, axis=1):
        y, state = layer.cell(block, state)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=1), state


def test_scan_over_blocks_is_a_python_loop_over_the_cell():
    layer, x, state = make(gate="lstm")
    weights = random_like((x, state), seed=1)

    def run(read):
        def weigh(layer, x, state):
            outputs = read(layer, x, state)
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), outputs, weights)
            return sum(jax.tree.leaves(products)), outputs

        return jax.jit(jax.grad(weigh, (0, 1, 2), has_aux=True))(layer, x, state)

    gradients, outputs = run(lambda layer, x, state: layer(x, state))
    loop_gradients, loop_outputs = run(loop)
    assert_close(outputs, loop_outputs)
    assert_close(gradients, loop_gradients)


def test_gradient_flows_through_the_state_over_blocks():
    """The last block's output reaches the first block's tokens by way of the state alone."""
    layer, x, state = make()

    def last(x, recurrent):
        return jnp.sum(layer(x, state._replace(recurrent=recurrent))[0][:, 2 * WINDOW :])

    by_x, by_state = jax.jit(jax.grad(last, (0, 1)))(x, state.recurrent)
    assert np.all(np.any(by_x != 0, axis=-1)) and np.all(np.any(by_state != 0, axis=-1))


def products_in_loops(function, *arguments):
    """How many matrix products the bodies of the outermost loops over blocks hold."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    loops = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    return [products(loop) for loop in loops]


def products(loop):
    body = equations(loop.params["jaxpr"].jaxpr)
    return sum(inner.primitive.name == "dot_general" for inner in body)


# Projections as one, twice two of attention, and those of the wiring; a gate is one product.
UPDATE = {"skip": 1 + 4 + 1, "single": 1 + 4 + 2, "dual": 1 + 4 + 3}


@pytest.mark.parametrize("gate", ["fixed", "lstm"])
@pytest.mark.parametrize("wiring", UPDATE)
def test_the_loop_over_blocks_holds_the_state_update_alone(gate, wiring):
    layer, x, state = make(gate=gate, wiring=wiring)
    assert products_in_loops(layer, x, state) == [UPDATE[wiring]]


def test_a_feedback_loop_holds_the_layers_below_and_no_more():
    """Of five layers with states in 1 and 3: what comes before and after stays outside."""
    model = random_model(MODELS["feedback_lstm_skip"])
    x, state = jnp.zeros((2, LENGTH, 12)), model.initial_state(2)
    loops = products_in_loops(model.stack, x, state)
    second_half = 2 + 1 + 2  # attention to states, output, MLP
    layer = 1 + 1 + 2 + second_half  # projections, T5 bias, self-attention
    in_the_loop = [second_half, UPDATE["skip"] + layer, layer, UPDATE["skip"] + 1]
    assert loops == [sum(in_the_loop), layer]  # the second loop is over the layers above


def by_stacking(variables, inside):
    """Shapes of what a scan takes or gives: what is whole in each step, and what is stacked."""
    shapes = [
        (each.aval.shape, own.aval.shape) for each, own in zip(variables, inside, strict=True)
    ]
    whole = [shape for shape, own in shapes if shape == own]
    return whole, [shape for shape, own in shapes if shape != own]


def test_a_feedback_loop_reads_its_layers_one_by_one():
    """Else devices would exchange gradients in every block (see `feedback.cut`)."""
    layers = 3  # in the loop
    model = random_model(model_config(4, feedback=True, num_layers=5))
    x, state = jnp.zeros((2, LENGTH, 12)), model.initial_state(2)
    gradient = jax.grad(lambda stack: stack(x, state)[0].sum())
    for equation in equations(jax.make_jaxpr(gradient)(model.stack).jaxpr):
        if equation.primitive.name == "scan" and equation.params["length"] == LENGTH // WINDOW:
            whole, _ = by_stacking(equation.invars, equation.params["jaxpr"].jaxpr.invars)
            assert not [shape for shape in whole if len(shape) == 3 and shape[0] == layers]


@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
def test_a_layer_that_is_computed_again_does_not_run_its_states_again(remat):
    model = random_model(dataclasses.replace(MODELS["fixed_skip"], remat=remat))
    x, state = jnp.zeros((2, LENGTH, 12)), model.initial_state(2)
    gradient = jax.grad(lambda stack: stack(x, state)[0].sum())
    loops = [
        equation
        for equation in equations(jax.make_jaxpr(gradient)(model.stack).jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == LENGTH // WINDOW
    ]
    forward = [loop for loop in loops if not loop.params["reverse"]]
    assert sum(products(loop) > 0 for loop in forward) == 1 < len(loops)


@pytest.mark.parametrize(("platform", "attended"), [("tpu", 0), ("gpu", 3), ("cpu", 3)])
def test_a_loop_over_layers_keeps_what_attention_gives_but_on_a_tpu(platform, attended):
    layers = 5
    with built_for(platform):
        config = model_config(num_layers=layers, remat="layer", scan_layers=True, attention="tiled")
        model = br.LanguageModel(config, rngs=nnx.Rngs(0))
    x, state = jnp.zeros((2, LENGTH, 12)), model.initial_state(2)
    gradient = jax.grad(lambda stack: stack(x, state)[0].sum())
    forward, *_ = (
        equation
        for equation in equations(jax.make_jaxpr(gradient)(model.stack).jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == layers
    )
    _, stacked = by_stacking(forward.outvars, forward.params["jaxpr"].jaxpr.outvars)
    caches = [cache.shape for cache in jax.tree.leaves(state.cache)]
    assert set(stacked) >= {*caches, (layers, *x.shape)}
    assert len(stacked) == len(caches) + 1 + attended


@pytest.mark.parametrize(("platform", "kept"), [("tpu", 1 + 2), ("gpu", 1 + 2), ("cpu", None)])
def test_an_accelerator_keeps_states_and_their_keys_and_values_of_a_loop(platform, kept):
    """By a TPU's compiler, what else a loop would stack takes longer than computing it again."""
    with built_for(platform):
        model = br.LanguageModel(MODELS["fixed_skip"], rngs=nnx.Rngs(0))
    x, state = jnp.zeros((2, LENGTH, 12)), model.initial_state(2)
    gradient = jax.grad(lambda stack: stack(x, state)[0].sum())
    forward, *_ = (
        equation
        for equation in equations(jax.make_jaxpr(gradient)(model.stack).jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == LENGTH // WINDOW
    )
    _, stacked = by_stacking(forward.outvars, forward.params["jaxpr"].jaxpr.outvars)
    assert len(stacked) == kept if kept else len(stacked) > 2 * (1 + 2)


@pytest.mark.parametrize("feedback", [False, True])
def test_nothing_is_concatenated_or_stacked_with_an_axis_of_heads(feedback):
    """A TPU would transpose it first. Rotary positions, which turn halves of a head, do it."""
    heads, size, changes = 2, 24, {"num_layers": 4, "dropout": 0.1}
    changes |= {"window": 128, "num_heads": heads, "head_size": size, "num_states": 128}
    config = model_config(2, feedback=feedback, **changes)
    with built_for("tpu"):
        model = jax.eval_shape(lambda: br.LanguageModel(config, rngs=nnx.Rngs(0)))
        arguments = jax.eval_shape(
            lambda model: (jnp.zeros((2, 3 * 128), int), model.initial_state(2)), model
        )

        def read(model, tokens, state):
            return model(tokens, state, dropout_key=jax.random.key(0))[0].sum()

        forward = equations(jax.make_jaxpr(read)(model, *arguments).jaxpr)
        found = equations(jax.make_jaxpr(jax.grad(read))(model, *arguments).jaxpr)
        loops = [equation for equation in forward if equation.primitive.name == "scan"]
        stacked = {
            shape
            for loop in loops
            if loop.params["length"] == 3  # over blocks
            for shape in by_stacking(loop.outvars, loop.params["jaxpr"].jaxpr.outvars)[1]
        }
        shapes = stacked | {
            equation.outvars[0].aval.shape
            for equation in found
            # Caches are joined along their first axis, that of layers.
            if equation.primitive.name == "concatenate" and equation.params["dimension"] > 0
        }
    assert {shape[-1] for shape in shapes} >= {2 * heads * size}
    assert heads * size in {shape[-1] for shape in stacked}
    assert not any(size in shape for shape in shapes), shapes


WRONG = {
    "size of x": ({"x": (2, 12, 8)}, r"x has shape \(2, 12, 8\)"),
    "segment": ({"x": (2, 7, 12)}, "7 tokens is no multiple of the window 4"),
    "window of keys": ({"keys": (2, 3, 2, 4)}, "state.cache.keys"),
    "batch of values": ({"values": (3, 4, 2, 4)}, "state.cache.values"),
    "batch of states": ({"recurrent": (1, 3, 12)}, r"state.recurrent .*\(1, 3, 12\)"),
    "number of states": ({"recurrent": (2, 4, 12)}, "state.recurrent"),
    "size of states": ({"recurrent": (2, 3, 8)}, "state.recurrent"),
}


@pytest.mark.parametrize("shapes, words", WRONG.values(), ids=WRONG)
def test_wrong_shapes_are_refused(shapes, words):
    cache = (2, 4, 2, 4)
    shapes = {"x": (2, 12, 12), "keys": cache, "values": cache, "recurrent": (2, 3, 12)} | shapes
    x, keys, values, recurrent = (jnp.zeros(shape) for shape in shapes.values())
    with pytest.raises(ValueError, match=words):
        make()[0](x, br.LayerState(br.KeysValues(keys, values), recurrent))
