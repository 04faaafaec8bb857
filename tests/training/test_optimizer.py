"""Laws of schedules and optimizers: each layer is on its own, whatever it is stacked with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    AnyOptimizerConfig,
    DataConfig,
    ExperimentConfig,
    MuonConfig,
    OptimizerConfig,
    TrainingConfig,
)
from block_recurrent.model.parameters import named_parameters
from block_recurrent.training import make_optimizer, make_schedule
from block_recurrent.training.optimizer import OPTIMIZERS
from tests.helpers import SIZES, assert_close, assert_equal, model_config, random_model

ADAMW = {"schedule": "cosine", "learning_rate": 0.1, "warmup_steps": 2}


def rates(steps, num_steps=1000, **fields) -> list[float]:
    schedule = make_schedule(OptimizerConfig(**fields), num_steps)
    by_array = [float(schedule(jnp.int32(step))) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], by_array, rtol=1e-6)
    return by_array


def test_rsqrt_is_a_ramp_and_then_the_inverse_root():
    factor, warmup, steps = 2.0, 100, [0, 1, 50, 100, 101, 400, 10**6]
    expected = [factor * min(step / warmup, 1) / max(step, warmup) ** 0.5 for step in steps]
    found = rates(steps, learning_rate=factor, warmup_steps=warmup)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == 0 and max(found) == found[3]


def test_cosine_is_a_ramp_and_then_half_a_period_to_the_final_rate():
    peak, final, warmup, num_steps = 0.5, 0.1, 10, 110
    found = rates(
        [0, 5, 10, 35, 60, 110, 500],
        num_steps,
        schedule="cosine",
        learning_rate=peak,
        final_learning_rate=final,
        warmup_steps=warmup,
    )
    quarter = final + (peak - final) * (1 + np.cos(np.pi / 4)) / 2
    middle = (peak + final) / 2
    np.testing.assert_allclose(found, [0, 0.25, peak, quarter, middle, final, final], rtol=1e-6)


def test_a_cosine_run_shorter_than_its_ramp_is_all_ramp():
    found = rates([0, 50], 50, schedule="cosine", learning_rate=1.0, warmup_steps=100)
    np.testing.assert_allclose(found, [0, 0.5], rtol=1e-6)


LAYERS = 3
# Adafactor factors what has 128 rows and columns; every layer has another size of numbers.
SHAPES = {"keys.kernel": (130, 140), "mlp.kernel": (6, 5), "norm.scale": (5,)}
ALONE = {
    "embedding": (150, 130),
    "stack.parts.1.layer.cell.keys.kernel": (3, 130, 128),
    "stack.parts.1.layer.cell.forget_bias": (4,),
}


def draw(seed: int) -> dict[str, jax.Array]:
    """Numbers for every parameter of a model of three plain layers and a recurrent one."""
    rng = np.random.default_rng(seed)
    sizes = np.array([0.01, 1.0, 100.0])
    named = {
        f"stack.parts.0.layers.{name}": sizes.reshape(-1, *[1] * len(shape))
        * rng.normal(size=(LAYERS, *shape))
        for name, shape in SHAPES.items()
    }
    named |= {name: rng.normal(size=shape) for name, shape in ALONE.items()}
    return {name: jnp.asarray(value, jnp.float32) for name, value in named.items()}


def experiment(optimizer: AnyOptimizerConfig) -> ExperimentConfig:
    """A run of ten steps of a model of three plain layers and a recurrent one."""
    return ExperimentConfig(
        model=model_config(LAYERS, num_layers=LAYERS + 1, vocab_size=256),
        data=DataConfig(segment_length=SIZES["window"]),
        optimizer=optimizer,
        training=TrainingConfig(num_steps=10),
    )


compiled = functools.cache(jax.jit)


def run(optimizer, parameters, gradients):
    """The parameters after all updates."""
    state, update = optimizer.init(parameters), compiled(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def layer_of(named, index: int):
    """One layer's parameters, without the leading axis."""
    prefix = "stack.parts.0.layers."
    return {
        name.removeprefix(prefix): x[index] for name, x in named.items() if name.startswith(prefix)
    }


def rest_of(named):
    return {name: named[name] for name in ALONE}


def kernels(named):
    return {name: name.endswith("kernel") for name in named}


CONFIGS = {
    "adafactor": AdafactorConfig(learning_rate=1.0, warmup_steps=2),
    "adamw": AdamWConfig(**ADAMW, weight_decay=0.3),
    "muon": MuonConfig(**ADAMW, weight_decay=0.3),
}


def plain(name: str) -> optax.GradientTransformation:
    """The optimizer by optax alone."""
    schedule = make_schedule(CONFIGS[name], 10)
    if name == "adafactor":
        return optax.adafactor(schedule, decay_rate=0.8, momentum=0.9)
    if name == "adamw":
        return optax.adamw(schedule, 0.9, 0.95, weight_decay=0.3, mask=kernels)
    matrix = optax.contrib.MuonDimensionNumbers()
    return optax.contrib.muon(
        schedule,
        weight_decay=0.3,
        adam_b2=0.95,
        muon_weight_dimension_numbers=lambda named: {
            name: matrix if kernel else None for name, kernel in kernels(named).items()
        },
        consistent_rms=0.2,
    )


@pytest.fixture
def optax_promotes():
    """optax by itself mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_layers_are_updated_as_each_alone_would_be(name):
    parameters, gradients = draw(0), [draw(seed) for seed in range(1, 4)]
    result = run(make_optimizer(experiment(CONFIGS[name])), parameters, gradients)
    parts = [lambda named, index=index: layer_of(named, index) for index in range(LAYERS)]
    optimizer = plain(name)
    for part in (*parts, rest_of):
        alone = run(optimizer, part(parameters), [part(gradient) for gradient in gradients])
        for key, value in part(result).items():
            error = 2e-6 if name == "muon" else 1e-7  # products of matrices are rounded
            np.testing.assert_allclose(value, alone[key], rtol=2e-6, atol=error, err_msg=key)
            assert np.any(value != part(parameters)[key])


def test_adafactor_keeps_the_moments_that_it_reads_and_no_others():
    parameters, optimizer = draw(0), make_optimizer(experiment(CONFIGS["adafactor"]))
    begun = optimizer.init(parameters)
    _, later = compiled(optimizer.update)(draw(1), begun, parameters)
    assert jax.tree.structure(later) == jax.tree.structure(begun)
    moments: dict[str, list[tuple[int, ...]]] = {name: [] for name in parameters}
    for path, array in jax.tree_util.tree_leaves_with_path(later):
        if (name := getattr(path[-1], "key", None)) in moments:
            moments[name].append(array.shape)
    for name, value in parameters.items():
        factored = sorted(value.shape)[-2:] >= [128, 128]
        assert len(moments[name]) == (3 if factored else 2), name  # one averages the updates
        assert not any(1 in shape for shape in moments[name]), name


def test_gradients_are_scaled_down_to_the_global_norm():
    clip = 5.0
    parameters, large, small = draw(0), draw(1), draw(2)
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in large.values()))
    assert norm > clip
    small = jax.tree.map(lambda x: x / 1e5, small)
    clipped = jax.tree.map(lambda x: x * np.float32(clip / norm), large)
    clipping = make_optimizer(experiment(AdamWConfig(**ADAMW, clip_norm=clip)))
    plainly = make_optimizer(experiment(AdamWConfig(**ADAMW)))
    found = run(clipping, parameters, [small, large, small])
    assert_close(found, run(plainly, parameters, [small, clipped, small]), 1e-6)
    unclipped = run(plainly, parameters, [small, large, small])
    assert np.any(found["embedding"] != unclipped["embedding"])


def test_muon_turns_kernels_by_nearly_orthogonal_matrices_and_nothing_else():
    parameters, gradient = draw(0), draw(1)
    found = run(make_optimizer(experiment(MuonConfig(**ADAMW))), parameters, [gradient] * 2)
    for name, before in parameters.items():
        step = np.asarray(before - found[name], np.float64) / 0.05  # the first step's rate is 0
        if name.endswith("kernel"):
            left, _, right = np.linalg.svd(gradient[name], full_matrices=False)
            turn = 0.2 * max(step.shape[-2:]) ** 0.5 * left @ right
            size, full = np.linalg.norm(step), np.linalg.norm(turn)
            assert np.vdot(step, turn) > 0.8 * size * full and 0.6 < size / full < 1.2, name
        else:
            np.testing.assert_allclose(abs(step), 1, atol=0.2, err_msg=name)


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_only_kernels_decay(kind):
    config = experiment(kind(**ADAMW, weight_decay=0.3))
    model = random_model(config.model)
    parameters = named_parameters(model)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    result = run(make_optimizer(config), parameters, [zeros, zeros])
    for name, value in parameters.items():
        kept = 1 - 0.3 * 0.05 if name.endswith(".kernel") else 1.0  # the first step's rate is 0
        assert_close(result[name], kept * np.asarray(value), 1e-6)
    assert_equal(result["embedding"], parameters["embedding"])


OTHER = {
    AdafactorConfig: {
        "decay_rate": 0.5,
        "momentum": None,
        "clipping_threshold": 0.1,
        "multiply_by_parameter_scale": False,
        "eps1": 10.0,
    },
    AdamWConfig: {"b1": 0.5, "b2": 0.5, "eps": 1.0, "weight_decay": 0.5},
    MuonConfig: {"beta": 0.5, "b1": 0.5, "b2": 0.5, "eps": 1.0, "weight_decay": 0.5},
}


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, fields in OTHER.items() for name in fields]
)
def test_every_field_of_an_optimizer_changes_its_updates(kind, name):
    rng = np.random.default_rng(0)
    shapes = {"a.kernel": (4, 3), "a.bias": (3,)}
    parameters, *gradients = (
        {path: jnp.asarray(rng.normal(size=shape)) for path, shape in shapes.items()}
        for _ in range(4)
    )
    assert set(OTHER) == set(OPTIMIZERS)

    def after(**fields):
        config = kind(learning_rate=0.1, warmup_steps=1, **fields)
        optimizer = OPTIMIZERS[kind](config, make_schedule(config, 10))
        result, state = parameters, optimizer.init(parameters)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, result)
            result = optax.apply_updates(result, updates)
        return np.concatenate([x.ravel() for x in result.values()])

    assert np.any(after(**{name: OTHER[kind][name]}) != after())
