"""The training loop: from a configuration and a work directory to a trained model."""

import contextlib
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from block_recurrent.config import ExperimentConfig
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.parameters import count_parameters
from block_recurrent.parallel.mesh import batch_sharding, make_mesh
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.meter import Meter, Stopwatch
from block_recurrent.runs.metrics import METRICS, read_metrics
from block_recurrent.runs.records import Records
from block_recurrent.runs.resumption import check_same_data, check_unused
from block_recurrent.runs.workdir import check_claim, claim, record_launch
from block_recurrent.system.devices import check_device
from block_recurrent.system.files import write_whole
from block_recurrent.system.lock import locked
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import Stopped, StopRequest, stop_on_signal
from block_recurrent.training.build import (
    Corpora,
    abstract_model,
    evaluate_run,
    load_corpora,
    make_lanes,
    make_run_optimizer,
    make_train_state,
)
from block_recurrent.training.evaluation import Evaluation
from block_recurrent.training.optimizer import make_schedule
from block_recurrent.training.step import (
    StepMetrics,
    all_finite,
    make_train_step,
    train_state_sharding,
)

SUMMARY = "summary.json"
VALIDATION_LOSS = "validation/bits_per_token"
MOST_SKIPPED = 10


def train(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    corpora: Corpora | None = None,
    *,
    line: ProgressLine | None = None,
) -> tuple[LanguageModel, Evaluation]:
    """Trains to the configured number of steps, from the newest whole checkpoint if there is one.

    Args:
      config: of the run.
      workdir: holds `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `summary.json`.
      corpora: the documents; read as configured unless given.
      line: shows progress; on standard error unless given.

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
    check_claim(workdir, config)
    check_unused(workdir, Checkpoints(workdir / "checkpoints"))
    check_device()
    with stop_on_signal(nothing_to_save=True) as stop, locked(workdir):
        if corpora is None:
            corpora = load_corpora(config, line)
            for corpus in corpora:
                print(corpus.summary())
        model = abstract_model(config.model)
        sizes = [f"{count_parameters(model, embedding=e):,}" for e in (True, False)]
        print(f"parameters: {sizes[0]}, without embedding {sizes[1]}", flush=True)
        run = Run(config, workdir, corpora, line, stop)
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
        self.skipped_in_a_row = 0
        self._build()
        try:
            self._restore()
            self.step = self.first_step = int(self.state.step)
            self.records = Records(workdir, self.step, self.checkpoints, self.warn)
            self._note_evaluation()
        except BaseException:
            self.checkpoints.settle()
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

    def _restore(self) -> None:
        """Continues from the newest whole checkpoint; a new run begins with one."""
        initial, sharding = partial(make_train_state, self.config), train_state_sharding(self.mesh)
        if not self.checkpoints.steps():
            self.state = jax.device_put(initial(), sharding)
            self._begin()
            self.checkpoints.save(self.state, self.progress())
            return
        like = jax.jit(initial, out_shardings=sharding).eval_shape()  # computes nothing
        self.state, progress = self.checkpoints.restore(like)
        check_same_data(self.workdir, progress, self.progress())
        self.lanes.restore(progress["lanes"])
        self.meter.restore(progress["unlogged"])
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        read_metrics(self.workdir / METRICS)  # whether they are damaged
        self._begin()
        self.checkpoints.tidy()
        self.line.end(f"continuing from step {int(self.state.step):,}")

    def _begin(self) -> None:
        claim(self.workdir, self.config)
        record_launch(self.workdir)

    def _note_evaluation(self) -> None:
        """Notes the loss of a checkpoint if a kill came after its figures and before that note."""
        loss = self.records.figure(self.step, VALIDATION_LOSS)
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
        self.records.close()

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
        return due and self.records.figure(self.step, VALIDATION_LOSS) is None

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
        self.records.write(self.step, figures)
        self.line.show(self.meter.describe(self.step, figures))

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
        count = self.skipped_in_a_row
        times = f" for {count} steps in a row" if count > 1 else ""
        return (
            f"loss ({metrics.nats} nats) or gradient (norm {metrics.gradient_norm}) is not "
            f"finite{times} by step {self.step:,}: lower optimizer.learning_rate or set "
            f"optimizer.clip_norm; {self._last_finite()}"
        )

    def _last_finite(self) -> str:
        self.checkpoints.settle()
        return self.records.newest("last finite checkpoint")

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
        self.records.write(self.step, figures)
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
          SaveFailed: as of `Records.save`.
        """
        with self.clock.part("save"):
            self.check_state()
            stopping = self.stop.signal is not None
            self.records.save(self.state, self.progress(), loss=loss, last=stopping)

    def flush(self) -> None:
        """Waits until the newest checkpoint is on disk; errors as of `Checkpoints.wait`."""
        with self.clock.part("save"):
            self.checkpoints.wait()

    def _summarize(self, outcome: str) -> None:
        """Says where the time went, on the screen and in `summary.json`."""
        self.checkpoints.settle()
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
