"""What tests of the model share: tiny models with random parameters, and comparison."""

import dataclasses
import functools
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

import block_recurrent as br
from block_recurrent.config import (
    AdafactorConfig,
    AnyOptimizerConfig,
    DataConfig,
    ExperimentConfig,
    TrainingConfig,
)
from block_recurrent.training import TrainState, trainer
from block_recurrent.training.build import make_train_state

SIZES: dict[str, Any] = {
    "model_size": 12,
    "num_heads": 2,
    "head_size": 4,
    "mlp_size": 16,
    "window": 4,
    "num_states": 3,
}
VOCABULARY = 11


def slow(*values: Any) -> list:
    """Values of a parameter, or of several together, that only `make soak` tries."""
    together = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*each, marks=pytest.mark.slow) for each in together]


def layer_config(**changes: Any) -> br.LayerConfig:
    """A tiny layer, no two of whose sizes are equal where they could be confused."""
    return br.LayerConfig(**(SIZES | changes))


def model_config(*recurrent_layers: int, **changes: Any) -> br.ModelConfig:
    """A tiny model of three layers."""
    fields = {"vocab_size": VOCABULARY, "num_layers": 3, "recurrent_layers": recurrent_layers}
    return br.ModelConfig(**(SIZES | fields | changes))


# Every gate and wiring, with and without feedback; recurrent layers below, amid and above others.
FEEDBACK = {"feedback": True}
ROTARY = {"positions": "rotary"}
MODELS = {
    "slide": model_config(),
    "slide_rotary": model_config(**ROTARY),
    "fixed_skip": model_config(1, gate="fixed", wiring="skip"),
    "fixed_single": model_config(0, gate="fixed", wiring="single", **ROTARY),
    "fixed_dual": model_config(0, 2, gate="fixed", wiring="dual"),
    "lstm_skip": model_config(-1, gate="lstm", wiring="skip", **ROTARY),
    "lstm_single": model_config(1, 2, gate="lstm", wiring="single"),
    "lstm_dual": model_config(1, gate="lstm", wiring="dual"),
    "feedback_fixed_skip": model_config(1, gate="fixed", wiring="skip", **FEEDBACK),
    "feedback_fixed_single": model_config(2, 0, gate="fixed", wiring="single", **FEEDBACK),
    "feedback_fixed_dual": model_config(-1, gate="fixed", wiring="dual", **FEEDBACK, **ROTARY),
    "feedback_lstm_skip": model_config(1, 3, num_layers=5, gate="lstm", wiring="skip", **FEEDBACK),
    "feedback_lstm_single": model_config(1, gate="lstm", wiring="single", **FEEDBACK, **ROTARY),
    "feedback_lstm_dual": model_config(0, gate="lstm", wiring="dual", **FEEDBACK),
}
# A selection that has everything once, for laws that compile a model several times.
VARIED = ("slide", "fixed_single", "fixed_dual", "feedback_fixed_skip", "feedback_fixed_single")


def randomize(build: Callable[[nnx.Rngs], Any], seed: int = 0) -> Any:
    """The module that `build` makes, its parameters drawn at random, far from initial values."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, values = jax.tree_util.keystr(path), rng.normal(size=leaf.shape)
        if "kernel" in name:
            values /= np.sqrt(leaf.shape[-2])
        elif "scale" in name:
            values = rng.choice([-1, 1], leaf.shape) * rng.uniform(0.5, 3, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: build(nnx.Rngs(0))))


@functools.cache
def random_model(config: br.ModelConfig) -> br.LanguageModel:
    """The model of a configuration with random parameters."""
    return randomize(lambda rngs: br.LanguageModel(config, rngs=rngs))


def random_train_state(
    config: br.ModelConfig, optimizer: AnyOptimizerConfig | None = None, batch_size: int = 2
) -> TrainState:
    """A state before the first step, of a model of bytes with random parameters."""
    config = dataclasses.replace(config, vocab_size=256)
    experiment = ExperimentConfig(
        model=config,
        data=DataConfig(batch_size=batch_size, segment_length=config.window),
        optimizer=optimizer or AdafactorConfig(),
        training=TrainingConfig(num_steps=10),
    )
    return make_train_state(experiment)._replace(model=random_model(config))


def random_tokens(batch: int, length: int, seed: int = 0) -> Array:
    """[B, N] random tokens of the tiny vocabulary."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(VOCABULARY, size=(batch, length)), jnp.int32)


def random_like(tree: Any, seed: int = 0) -> Any:
    """Arrays of the same shapes and dtypes, normally distributed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@jax.jit
def _read(model, tokens, state, start, key):
    return model(tokens, state, start_of_document=start, dropout_key=key)


@jax.jit
def _read_with_gradients(model, tokens, state, start, key):
    def loss(model, state):
        output = model(tokens, state, start_of_document=start, dropout_key=key)
        log_p = jax.nn.log_softmax(output[0][:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)), output

    (value, output), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(model, state)
    return value, output, gradients


def read(model, tokens, state, start=None, key=None):
    """Logits and next state, compiled once for each configuration and shape."""
    start = jnp.zeros(len(tokens), bool) if start is None else start
    return _read(model, tokens, state, start, key)


def read_with_gradients(model, tokens, state, start=None, key=None):
    """Mean loss, (logits, next state), and gradients of the loss for the model and the state."""
    start = jnp.zeros(len(tokens), bool) if start is None else start
    return _read_with_gradients(model, tokens, state, start, key)


def under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays whose names begin with the prefix, without it."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in names}


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal shapes, and `max|a - b| <= tolerance * max(1, max|b|)`, leaf by leaf."""

    def check(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, path
        error, limit = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=1)
        assert error <= tolerance * limit, f"{jax.tree_util.keystr(path)}: {error} of {limit}"

    jax.tree_util.tree_map_with_path(check, actual, expected)


def assert_equal(actual: Any, expected: Any) -> None:
    """The same numbers to the last bit, leaf by leaf."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            yield from equations(inner) if hasattr(inner, "eqns") else ()


def row(state: br.ModelState, index: int) -> br.ModelState:
    """One batch row of a state, as a batch of one."""
    return jax.tree.map(lambda x: x[:, index : index + 1], state)


def reference_config(config: br.ModelConfig) -> dict[str, Any]:
    """A configuration in the words of the authors, for `reference`."""
    return {
        "NL": config.num_layers,
        "H": config.num_heads,
        "D": config.head_size,
        "W": config.window,
        "rec": config.recurrent_layers,
        "gate": {"fixed": "bias", "lstm": "lstm"}[config.gate],
        "single": config.wiring == "single",
        "skip": config.wiring == "skip",
        "feedback": config.feedback,
        "pos": config.positions,
    }


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow beyond a size in bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def steps_compiled_once() -> Iterator[None]:
    """One compiled step for each model, also for restored arrays, which belong to a device."""
    compiled, make = {}, trainer.make_train_step

    def remembering(*arguments, shardings=None, **options):
        del shardings  # one device
        dropout_key = np.asarray(jax.random.key_data(arguments[1]))

        def step(state, batch):
            key = (state.model.config, *options.values(), dropout_key.tobytes())
            compiled_step = compiled.setdefault(key, make(*arguments, **options))
            return compiled_step(jax.device_put(state, jax.devices()[0]), batch)

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_train_step", remembering)
        yield
