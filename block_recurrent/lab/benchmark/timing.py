"""Timing training steps in turn, so that a machine whose speed drifts affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Batch
from block_recurrent.training import TrainState, make_train_step
from block_recurrent.training.build import make_train_state
from block_recurrent.training.optimizer import make_optimizer
from block_recurrent.training.step import StepMetrics


def timed(function: Callable[[], Any]) -> float:
    """Seconds until the result of a function is computed."""
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def random_batch(config: ExperimentConfig) -> Batch:
    """A segment of every lane, of uniformly random tokens, on the device."""
    shape = (config.data.batch_size, config.data.segment_length)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, np.int32)
    starts = np.zeros(shape[0], np.bool_)
    return jax.device_put(Batch(tokens, tokens, np.ones(shape, np.bool_), starts))


class TimedStep:
    """A compiled training step on random tokens, and the state that it updates.

    Attributes:
      costs: seconds from Python to StableHLO and from there to machine code; by XLA's own analysis
        the peak bytes beside arguments and results, and the operations, a loop's body counted once.
    """

    def __init__(self, config: ExperimentConfig):
        step: Any = make_train_step(make_optimizer(config), jax.random.key(0))
        self._batch = random_batch(config)
        self._state: TrainState = make_train_state(config)
        begin = time.perf_counter()
        lowered = step.lower(self._state, self._batch)
        middle = time.perf_counter()
        self._compiled = lowered.compile()
        memory = self._compiled.memory_analysis()
        self.costs: dict[str, float] = {
            "lowering_seconds": middle - begin,
            "compile_seconds": time.perf_counter() - middle,
            "temporary_bytes": memory.temp_size_in_bytes if memory is not None else 0,
            "flops": (self._compiled.cost_analysis() or {}).get("flops", 0.0),
        }

    def run(self) -> tuple[TrainState, StepMetrics]:
        """Takes one step."""
        self._state, metrics = self._compiled(self._state, self._batch)
        return self._state, metrics


def time_in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, one run after the other; a warm-up round comes first."""
    for run in runs.values():
        timed(run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> float:
    """The median over rounds of one run's time relative to another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def matmul_rate(rounds: int = 5, dtype: str = "float32") -> float:
    """Floating-point operations a second of a product of 2048 x 2048 matrices, the median."""
    x, multiply = jnp.ones((2048, 2048), dtype), jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(x))
    return statistics.median(2 * 2048**3 / timed(lambda: multiply(x)) for _ in range(rounds))
