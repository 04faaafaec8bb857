"""Learning rate schedules and optimizers, on parameters as a dictionary by path.

A new optimizer is a configuration class in `config.py`, in `AnyOptimizerConfig`, and a line in
`OPTIMIZERS`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib as contrib
from jax import Array
from jax.typing import ArrayLike

from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    AnyOptimizerConfig,
    ExperimentConfig,
    ModelConfig,
    MuonConfig,
    OptimizerConfig,
)
from block_recurrent.model.stack import stacked_layers

ALONE = "alone"  # label of the parameters that are not stacked


def _promoting(function: Callable) -> Callable:
    """A function of optax, which mixes dtypes and ranks even if JAX is set to forbid that."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return run


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    A linear ramp over `warmup_steps`, then either `learning_rate / sqrt(step)` or a cosine that
    reaches `final_learning_rate` at `decay_steps`, or else at `num_steps`.
    """
    if config.schedule == "cosine":
        steps = max(config.decay_steps or num_steps, config.warmup_steps + 1)
        return _promoting(
            optax.warmup_cosine_decay_schedule(
                0.0, config.learning_rate, config.warmup_steps, steps, config.final_learning_rate
            )
        )

    def rsqrt(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        reached = jnp.minimum(step / config.warmup_steps, 1.0)
        return config.learning_rate * reached * jnp.maximum(step, config.warmup_steps) ** -0.5

    return rsqrt


def _adafactor(config: AdafactorConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    rule = optax.adafactor(
        schedule,
        decay_rate=config.decay_rate,
        momentum=config.momentum,
        clipping_threshold=config.clipping_threshold,
        multiply_by_parameter_scale=config.multiply_by_parameter_scale,
        eps=config.eps1,
    )

    def init(params: Any) -> Any:
        return _without_placeholders(rule.init(params), params)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        return updates, _without_placeholders(state, params)

    return optax.GradientTransformation(init, cast(Any, update))


def _without_placeholders(state: Any, params: Any) -> Any:
    """Adafactor's state with None for the moments that a parameter does not have.

    optax keeps a zero for each and never reads it; half of the arrays of a checkpoint were such.
    """

    def without(found: Any) -> Any:
        if not isinstance(found, optax.FactoredState):
            return found
        factored = jax.tree.map(lambda param, v: v.shape != param.shape, params, found.v)

        def where(wanted: bool, moments: Any) -> Any:
            return jax.tree.map(lambda x, is_so: x if is_so == wanted else None, moments, factored)

        return found._replace(
            v_row=where(True, found.v_row),
            v_col=where(True, found.v_col),
            v=where(False, found.v),
        )

    return jax.tree.map(without, state, is_leaf=lambda x: isinstance(x, optax.FactoredState))


def _adamw(config: AdamWConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=cast(Any, lambda named: {name: name.endswith("kernel") for name in named}),
    )


def _muon(config: MuonConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    def matrices(named: Mapping[str, Any]) -> dict[str, contrib.MuonDimensionNumbers | None]:
        matrix = contrib.MuonDimensionNumbers()
        return {name: matrix if name.endswith("kernel") else None for name in named}

    return contrib.muon(
        schedule,
        beta=config.beta,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=cast(Any, matrices),
        consistent_rms=0.2,
    )


# Kind of configuration -> the function that makes its optimizer, without clipping.
OPTIMIZERS: Mapping[type[AnyOptimizerConfig], Callable[..., optax.GradientTransformation]] = {
    AdafactorConfig: _adafactor,
    AdamWConfig: _adamw,
    MuonConfig: _muon,
}


def make_optimizer(config: ExperimentConfig) -> optax.GradientTransformation:
    """The optimizer of a run.

    Stacked layers are updated one by one, so that Adafactor's scales and clipping are per layer.
    """
    optimizer = config.optimizer
    schedule = make_schedule(optimizer, config.training.num_steps)
    rule = OPTIMIZERS[type(optimizer)](optimizer, schedule)
    stacked = stacked_layers(config.model) if isinstance(config.model, ModelConfig) else ()
    each_layer = optax.GradientTransformation(jax.vmap(rule.init), jax.vmap(rule.update))

    def label(name: str) -> str:
        return next((path for path in stacked if name.startswith(f"{path}.")), ALONE)

    by_label = optax.partition(
        cast(Any, {ALONE: rule} | dict.fromkeys(stacked, each_layer)),
        cast(Any, lambda named: {name: label(name) for name in named}),
    )
    if optimizer.clip_norm is not None:
        by_label = optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), by_label)
    return optax.GradientTransformation(_promoting(by_label.init), _promoting(by_label.update))
