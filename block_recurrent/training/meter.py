"""Measurements of training: the metrics between two logs, the speed and the time left."""

import math
import time
from collections.abc import Sequence

import jax

from block_recurrent.config import TrainingConfig
from block_recurrent.system.progress import duration
from block_recurrent.training.step import StepMetrics


class Meter:
    """Metrics between two logs, and the speed without the first step, which compiles.

    Args:
      training: the length of the run, and when it evaluates.
      places: B N, the number of tokens in a batch, padding included.
      evaluation_steps: about how many steps take as long as an evaluation, before one is timed.
    """

    def __init__(self, training: TrainingConfig, places: int, evaluation_steps: float = 0.0):
        self._training, self._places = training, places
        self._evaluation_steps = evaluation_steps
        self._evaluation_seconds: float | None = None
        self._pending: list[StepMetrics] = []
        self._settled = 0
        self._clock: float | None = None
        self._untimed = 0
        self._seconds_per_step: float | None = None

    def restore(self, unlogged: Sequence[Sequence[float]]) -> None:
        """Adds the metrics of steps that the run before a restart has not logged."""
        self._pending = [StepMetrics(*metrics) for metrics in unlogged]
        self._settled = len(self._pending)

    def add(self, metrics: StepMetrics) -> None:
        """Adds a step's metrics, which the device may still be computing."""
        self._pending.append(metrics)
        if self._clock is None:
            jax.block_until_ready(metrics)
            self._untimed = len(self._pending)
            self._clock = time.monotonic()

    def settle(self, *, but: int = 0) -> list[StepMetrics]:
        """Waits for the steps since the last log, except the newest `but` of them.

        Returns:
          The metrics of those steps that no earlier call has returned, as numbers.
        """
        end = max(len(self._pending) - but, self._settled)
        new = [
            StepMetrics(*map(float, metrics))
            for metrics in jax.device_get(self._pending[self._settled : end])
        ]
        self._pending[self._settled : end] = new
        self._settled = end
        return new

    @property
    def unlogged(self) -> list[list[float]]:
        """The metrics since the last log, once they are settled."""
        return [list(metrics) for metrics in self._pending[: self._settled]]

    def add_evaluation(self, seconds: float) -> None:
        """Notes how long an evaluation took, which is the best guess for the next."""
        self._evaluation_seconds = seconds

    def restart_clock(self) -> None:
        """Excludes all steps until now, and the time between them, from the speed."""
        if self._clock is not None:  # otherwise the first step has not been compiled yet
            self._clock, self._untimed = time.monotonic(), len(self._pending)

    def collect(self) -> dict[str, float]:
        """Metrics since the last log, all of them settled.

        Skipped steps do not count; if all were skipped, there is neither loss nor gradient. If no
        step was timed, there is no speed.
        """
        assert self._clock is not None and self._settled == len(self._pending)
        seconds = time.monotonic() - self._clock
        steps = len(self._pending)
        counted = [step for step in self._pending if step.finite]
        nats = sum(step.nats for step in counted)
        targets = sum(step.targets for step in counted)
        timed = steps - self._untimed
        self._pending, self._settled = [], 0
        self.restart_clock()
        metrics: dict[str, float] = {"targets": targets}
        if timed:
            self._seconds_per_step = max(seconds, 1e-9) / timed
            metrics["tokens_per_second"] = targets / steps / self._seconds_per_step
        if counted:
            metrics["target_share"] = targets / (len(counted) * self._places)
            metrics["bits_per_token"] = nats / max(targets, 1.0) / math.log(2)
            metrics["gradient_norm"] = counted[-1].gradient_norm
        if len(counted) < steps:
            metrics["skipped"] = float(steps - len(counted))
        return metrics

    def describe(self, step: int, metrics: dict[str, float]) -> str:
        """The progress line."""
        parts = [f"step {step:,}/{self._training.num_steps:,}"]
        if "bits_per_token" in metrics:
            parts.append(f"{metrics['bits_per_token']:.3f} bits/token")
        if "skipped" in metrics:
            parts.append(f"{metrics['skipped']:.0f} steps skipped")
        if "tokens_per_second" in metrics:
            parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        if self._seconds_per_step is not None:
            parts.append(f"{duration(self._seconds_left(step, self._seconds_per_step))} left")
        return " | ".join(parts)

    def _seconds_left(self, step: int, seconds_per_step: float) -> float:
        evaluation = self._evaluation_seconds
        if evaluation is None:
            evaluation = self._evaluation_steps * seconds_per_step
        steps = (self._training.num_steps - step) * seconds_per_step
        return steps + self._training.evaluations_after(step) * evaluation
