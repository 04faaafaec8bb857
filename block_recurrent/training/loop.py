"""The training loop: from a configuration and a work directory to a trained model."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from block_recurrent.config import ExperimentConfig
from block_recurrent.files import write_whole
from block_recurrent.model import LanguageModel
from block_recurrent.partitioning import batch_sharding, make_mesh
from block_recurrent.training.checkpoints import Checkpoints, SaveFailed
from block_recurrent.training.digests import reason
from block_recurrent.training.evaluation import Evaluation
from block_recurrent.training.experiment import (
    Corpora,
    evaluate_run,
    load_corpora,
    make_lanes,
    make_run_optimizer,
    make_train_state,
)
from block_recurrent.training.lock import locked
from block_recurrent.training.meter import Meter, Stopwatch
from block_recurrent.training.metrics import MetricsFile, TensorBoard
from block_recurrent.training.optimizer import make_schedule
from block_recurrent.training.progress import ProgressLine
from block_recurrent.training.resume import check_same_data, check_unused
from block_recurrent.training.signals import Stopped, StopRequest, stop_on_signal
from block_recurrent.training.step import (
    StepMetrics,
    all_finite,
    make_train_step,
    train_state_sharding,
)

SUMMARY = "summary.json"
VALIDATION_LOSS = "validation/bits_per_token"
MOST_SKIPPED = 10
MOST_FAILED_SAVES = 3


def train(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    corpora: Corpora | None = None,
    *,
    line: ProgressLine | None = None,
    begin: Callable[[], None] = lambda: None,
) -> tuple[LanguageModel, Evaluation]:
    """Trains to the configured number of steps, from the newest whole checkpoint if there is one.

    Args:
      config: of the run.
      workdir: holds `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `summary.json`.
      corpora: the documents; read as configured unless given.
      line: shows progress; on standard error unless given.
      begin: called when it is certain that the run can begin or go on, before any file but the
        lock is changed.

    Returns:
      The trained model and its evaluation on the validation documents.

    Raises:
      Stopped: a signal came; a checkpoint was saved.
      FloatingPointError: loss, gradient or parameters are no longer finite.
      CheckpointError: there is something, but nothing to continue from.
      DataError: the documents are not those the run began with.
      SaveFailed: checkpoints or metrics cannot be written.
      WorkdirInUse: another process is training there.
    """
    line, workdir = line or ProgressLine(), Path(workdir)
    with stop_on_signal(nothing_to_save=True) as stop, locked(workdir):
        run = Run(config, workdir, corpora or load_corpora(config, line), line, stop, begin)
        try:
            return run.finish()
        finally:
            run.close()


class Run:
    """A run in progress: what `train` moves forward, step by step."""

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: Path,
        corpora: Corpora,
        line: ProgressLine,
        stop: StopRequest | None = None,
        begin: Callable[[], None] = lambda: None,
    ):
        self.config = config
        self.workdir = workdir
        self.corpora = corpora
        self.line = line
        self.stop = stop or StopRequest()
        self.clock = Stopwatch()
        workdir.mkdir(parents=True, exist_ok=True)
        keep = config.training.keep_checkpoints
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep=keep, warn=self.warn)
        self.lanes = make_lanes(config, corpora.train)
        self.meter = Meter(config.training.num_steps)
        self.skipped_in_a_row = self.failed_saves = 0
        self._build()
        try:
            self._restore(begin)
            self.step = self.first_step = int(self.state.step)
            self.metrics = MetricsFile(workdir / "metrics.jsonl", step=self.step)
            self.board = TensorBoard(workdir / "tensorboard", step=self.step, warn=self.warn)
            self._note_evaluation()
        except BaseException:
            self._wait_for_save()
            self.checkpoints.close()
            raise

    def _build(self) -> None:
        """The step, which is compiled when it is first taken."""
        training = self.config.training
        self.schedule = make_schedule(self.config.optimizer, training.num_steps)
        self.mesh = make_mesh(self.config.data.batch_size)
        dropout_key = jax.random.fold_in(jax.random.key(training.seed), 1)
        self.train_step = make_train_step(
            make_run_optimizer(self.config),
            dropout_key,
            clear_states=training.clear_states,
            skip_non_finite=training.non_finite == "skip",
        )

    def _restore(self, begin: Callable[[], None]) -> None:
        """Continues from the newest whole checkpoint; a new run begins with one."""
        initial, sharding = partial(make_train_state, self.config), train_state_sharding(self.mesh)
        if not self.checkpoints.steps():
            check_unused(self.workdir, self.checkpoints)
            self.state = jax.device_put(initial(), sharding)
            begin()
            self.checkpoints.save(self.state, self.progress())
            return
        like = jax.jit(initial, out_shardings=sharding).eval_shape()  # computes nothing
        self.state, progress = self.checkpoints.restore(like)
        check_same_data(self.workdir, progress, self.progress())
        self.lanes.restore(progress["lanes"])
        self.meter.restore(progress["unlogged"])
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        begin()
        self.checkpoints.tidy()
        self.line.end(f"continuing from step {int(self.state.step):,}")

    def _note_evaluation(self) -> None:
        """Notes the loss of a checkpoint if a kill came after its figures and before that note."""
        loss = self.metrics.figure(self.step, VALIDATION_LOSS)
        if loss is not None:
            self.checkpoints.save(self.state, self.progress(), loss=loss)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides arrays."""
        return {
            "lanes": self.lanes.position,
            "unlogged": self.meter.unlogged,
            "skipped_in_a_row": self.skipped_in_a_row,
            "validation": self.corpora.validation.fingerprint,
        }

    def warn(self, sentence: str) -> None:
        """Leaves a warning standing on the screen."""
        self.line.end(f"WARNING: {sentence}")

    def close(self) -> None:
        """Closes files and threads; what fails here is a warning, lest it hide why a run failed."""
        self._wait_for_save()
        self.checkpoints.close()
        self.board.close()

    def finish(self) -> tuple[LanguageModel, Evaluation]:
        """Takes the steps that are left; result and errors as of `train`."""
        outcome = "failed"
        try:
            evaluation = self._take_steps()
            self.flush()
            outcome = "finished"
            return self.state.model, evaluation
        except Stopped as stopped:
            self.save()
            self.flush()
            self.line.end(f"{stopped}: step {self.step:,} is saved")
            outcome = str(stopped)
            raise
        finally:
            self._summarize(outcome)

    def _take_steps(self) -> Evaluation:
        training = self.config.training
        while self.step < training.num_steps:
            if self.evaluation_is_due():
                self.evaluate()
            self.take_step()
            self.stop.check()
            if self.step % training.checkpoint_every == 0:
                self.save()
        self.save()
        return self.evaluate()

    def evaluation_is_due(self) -> bool:
        """Whether the present step is to be evaluated and has not been."""
        due = self.step > 0 and self.step % self.config.training.evaluate_every == 0
        return due and self.metrics.figure(self.step, VALIDATION_LOSS) is None

    def take_step(self) -> None:
        """Takes one step, and looks whether the one before it was finite."""
        with self.clock.part("data"):
            batch = jax.device_put(next(self.lanes), batch_sharding(self.mesh))
        with self.clock.part("step" if self.step > self.first_step else "compilation"):
            self.state, metrics = self.train_step(self.state, batch)
            self.step += 1
            self.meter.add(metrics)
            self.check_finite(but=1)
        self.stop.nothing_to_save = False
        last = self.step == self.config.training.num_steps
        if last or self.step % self.config.training.log_every == 0:
            self.log()

    def log(self) -> None:
        """Writes the figures since the last log, and the progress line."""
        with self.clock.part("step"):
            self.check_finite()
        figures = self.meter.collect()
        figures["learning_rate"] = float(jnp.asarray(self.schedule(self.step - 1)))
        self.write(figures)
        self.line.show(self.meter.describe(self.step, figures))

    def write(self, figures: dict[str, float]) -> None:
        """Writes figures of the present step wherever they go.

        Raises:
          SaveFailed: they cannot be written.
        """
        try:
            self.metrics.write(self.step, figures)
        except OSError:
            self._wait_for_save()  # which may have filled the disk, and then made room again
            with self._writing_figures():
                self.metrics.write(self.step, figures)
        self.board.write(self.step, figures)

    @contextlib.contextmanager
    def _writing_figures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveFailed(
                f"the figures of step {self.step:,} could not be written to {self.workdir} "
                f"({reason(error)}); {self._newest('newest checkpoint')}"
            ) from error

    def check_finite(self, *, but: int = 0) -> None:
        """Looks at the steps taken, but not at the newest `but` of them, which may be running.

        Raises:
          FloatingPointError: the loss or gradient of one is not finite and may not be skipped.
        """
        for metrics in self.meter.settle(but=but):
            self.skipped_in_a_row = 0 if metrics.finite else self.skipped_in_a_row + 1
            allowed = MOST_SKIPPED - 1 if self.config.training.non_finite == "skip" else 0
            if self.skipped_in_a_row > allowed:
                raise FloatingPointError(self._why_not_finite(metrics))

    def check_state(self) -> None:
        """Looks at all steps taken, and at what they led to.

        Raises:
          FloatingPointError: as of `check_finite`, or the state is not finite.
        """
        self.check_finite()
        if not all_finite(self.state):
            raise FloatingPointError(
                "parameters, optimizer or carried state are not finite at step "
                f"{self.step:,}: lower optimizer.learning_rate; {self._last_finite()}"
            )

    def _why_not_finite(self, metrics: StepMetrics) -> str:
        times = f" for {MOST_SKIPPED} steps in a row" if self.skipped_in_a_row > 1 else ""
        return (
            f"loss ({metrics.nats} nats) or gradient (norm {metrics.gradient_norm}) is not "
            f"finite{times} by step {self.step:,}: lower optimizer.learning_rate or set "
            f"optimizer.clip_norm; {self._last_finite()}"
        )

    def _last_finite(self) -> str:
        self._wait_for_save()
        return self._newest("last finite checkpoint")

    def _wait_for_save(self) -> None:
        """Waits for the save in progress; that it has failed is a warning here."""
        try:
            self.checkpoints.wait()
        except SaveFailed as error:
            self.warn(str(error))

    def _newest(self, name: str) -> str:
        step = self.checkpoints.latest_step()
        return f"there is no {name}" if step is None else f"the {name} is that of step {step:,}"

    def evaluate(self) -> Evaluation:
        """Scores the validation documents, and keeps a checkpoint of the best model.

        Raises:
          Stopped: a signal came meanwhile.
          FloatingPointError: as of `check_state`.
        """
        self.check_state()
        self.line.show(f"step {self.step:,}: evaluating")
        with self.clock.part("evaluation"):
            evaluation = evaluate_run(
                self.config, self.state.model, self.corpora.validation, self.line, self.stop
            )
        figures = {f"validation/{name}": value for name, value in evaluation.figures().items()}
        self.write(figures)
        self.line.end(
            f"step {self.step:,}: validation {evaluation.bits_per_token:.4f} bits/token, "
            f"{evaluation.bits_per_byte:.4f} bits/byte, perplexity {evaluation.perplexity:.3f} "
            f"({evaluation.tokens:,} tokens)"
        )
        self.save(loss=evaluation.bits_per_token)
        self.meter.restart_clock()
        return evaluation

    def save(self, *, loss: float | None = None) -> None:
        """Begins to save a checkpoint of the present step, with its validation loss if known.

        Raises:
          FloatingPointError: as of `check_state`.
          SaveFailed: several saves in a row have failed, and this is not the last of the run.
        """
        with self.clock.part("save"):
            self.check_state()
            try:
                self.checkpoints.wait()
                with self._writing_figures():
                    self.metrics.flush()
                self.failed_saves = 0
            except SaveFailed as error:
                self.warn(str(error))
                self.failed_saves += 1
                if self.failed_saves >= MOST_FAILED_SAVES and self.stop.signal is None:
                    raise
            self.checkpoints.save(self.state, self.progress(), loss=loss)

    def flush(self) -> None:
        """Waits until the newest checkpoint is on disk; errors as of `Checkpoints.wait`."""
        with self.clock.part("save"):
            self.checkpoints.wait()

    def _summarize(self, outcome: str) -> None:
        """Says where the time went, on the screen and in `summary.json`."""
        self._wait_for_save()
        with contextlib.suppress(OSError):  # what made the run fail may make this fail, too
            write_whole(self.workdir / SUMMARY, json.dumps(self._summary(outcome), indent=2) + "\n")
        self.line.end(self.clock.describe())

    def _summary(self, outcome: str) -> dict[str, Any]:
        return {
            "outcome": outcome,
            "first_step": self.first_step,
            "last_step": self.step,
            "seconds": self.clock.seconds,
            "shares": self.clock.shares(),
            "latest_checkpoint": self.checkpoints.latest_step(),
            "best_checkpoint": self.checkpoints.best_step(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
