"""The training loop: from a configuration and a work directory to a trained model."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import jax

from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.data.lanes import describe_batches
from block_recurrent.data.loading import Corpora, load_corpora, makes_token_cache
from block_recurrent.gin_files import to_gin
from block_recurrent.model.attention import describe_attention
from block_recurrent.model.parameters import count_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.runs.bucket import Bucket, BucketError, bucket_of
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import SaveFailed
from block_recurrent.runs.identity import (
    check_bucket,
    check_claim,
    check_length,
    check_same_data,
    check_unused,
    remat_of,
)
from block_recurrent.runs.initial import find_source, read_source
from block_recurrent.runs.metrics import METRICS, read_metrics
from block_recurrent.runs.profile import Profile
from block_recurrent.runs.records import Records, record_launch
from block_recurrent.runs.trackers import check_trackers
from block_recurrent.runs.workdir import CHECKPOINTS, CONFIG, locked, write_config
from block_recurrent.system.devices import check_device
from block_recurrent.system.files import make_folder
from block_recurrent.system.progress import ProgressLine, Stopwatch
from block_recurrent.system.signals import Stopped, StopRequest, stop_on_signal
from block_recurrent.training.build import abstract_model
from block_recurrent.training.evaluation import Evaluation, evaluate, evaluation_steps
from block_recurrent.training.remat import AUTO, choose_remat, with_remat
from block_recurrent.training.trainer import Trainer

VALIDATION_LOSS = "validation/bits_per_token"
INITIAL = "initial_parameters"  # in a checkpoint's progress
MOST_FAILED_SAVES = 3
BATCHES_A_VOTE = 10  # of an evaluation by several processes


def train(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    corpora: Corpora | None = None,
    *,
    line: ProgressLine | None = None,
    stop: StopRequest | None = None,
) -> tuple[Model, Evaluation]:
    """Trains to the configured number of steps, from the newest intact checkpoint if there is one.

    Args:
      config: the run's configuration.
      workdir: the directory for `config.gin`, `checkpoints/`, `metrics.jsonl`, `launches.jsonl`,
        `summary.json`, `profile/` and what trackers write. It is new, or belongs to the same run.
      corpora: the documents. Unless given, they are read as the configuration says and described
        on standard output.
      line: shows progress, on standard error unless given.
      stop: a request to stop, which is also told whether there is something to save. Unless given,
        the signals SIGINT, SIGTERM and SIGHUP request it; only the main thread can receive them.

    Returns:
      The trained model and its evaluation on the validation documents.

    Raises:
      Stopped: a stop was requested; a checkpoint was saved.
      ConfigError: the work directory cannot be used, or belongs to another run.
      MissingPackage: wandb is a tracker, but is not installed.
      WorkdirInUse: another process is training there.
      CheckpointError: the directory is not new, but there is no checkpoint to continue from; or
        there are no initial parameters where they should be.
      RunError: the metrics of the run are damaged.
      DataError: the documents cannot be read, or are not those that the run began with.
      DeviceMissing: JAX has no device of the kind that was asked for.
      FloatingPointError: loss, gradient or parameters are no longer finite.
      SaveFailed: checkpoints or metrics cannot be written.
    """
    workdir = Path(workdir)
    line = line or ProgressLine(quiet=not processes.is_primary())
    stopping = contextlib.nullcontext(stop) if stop else stop_on_signal(nothing_to_save=True)
    with stopping as stop, contextlib.ExitStack() as held:
        bucket = bucket_of(config)
        processes.decided(lambda: _claim(workdir, config, bucket, line, held))
        check_device()
        config = _settle_remat(config, workdir, line)
        bucket = bucket_of(config)  # with the configuration as settled
        if corpora is None:
            corpora = _read_corpora(config, line)
        with contextlib.closing(TrainingLoop(config, workdir, corpora, line, stop, bucket)) as loop:
            return loop.finish()


def _claim(
    workdir: Path,
    config: ExperimentConfig,
    bucket: Bucket | None,
    line: ProgressLine,
    held: contextlib.ExitStack,
) -> None:
    """Locks a work directory that the run may use until `held` is closed."""
    check_trackers(config.training.trackers)
    held.enter_context(locked(workdir))
    check_claim(workdir, config)
    here, there = Checkpoints(workdir / CHECKPOINTS).steps(), []
    try:
        if bucket:
            check_bucket(bucket, config)
            there = here or bucket.steps()
        if bucket and there and not here:
            # What the run was until now, before anything is copied from there.
            before = bucket.read(CONFIG)
            write_config(workdir, before.decode() if before else to_gin(config))
    except BucketError as error:
        if not here:
            raise
        line.end(f"WARNING: {error}")
    check_unused(workdir, bucket)
    if not (here or there):
        find_source(config)  # says what is wrong before the documents are read


def _settle_remat(config: ExperimentConfig, workdir: Path, line: ProgressLine) -> ExperimentConfig:
    """The configuration with what "auto" is on these devices, or was when the run began."""
    if config.model.remat != AUTO:
        return config
    began = processes.decided(lambda: remat_of(workdir))
    if began != AUTO:
        return with_remat(config, began)
    line.show('compiling steps for model.remat = "auto" ...')
    config, chosen = choose_remat(config)
    line.end(chosen)
    return config


def _read_corpora(config: ExperimentConfig, line: ProgressLine) -> Corpora:
    """The documents, which are described together with the model."""
    corpora = processes.together(
        lambda: load_corpora(config.data, line.show), primary_first=makes_token_cache(config.data)
    )
    if processes.is_primary():
        model = abstract_model(config.model)
        sizes = [f"{count_parameters(model, embedding=e):,}" for e in (True, False)]
        for corpus in corpora:
            print(corpus.summary())
        print(describe_batches(corpora.train, config.data.batch_size, config.data.segment_length))
        print(f"parameters: {sizes[0]}, without embedding {sizes[1]}")
        if isinstance(config.model, ModelConfig):
            print(f"attention: {describe_attention(config.model)}")
        print(describe_plan(config, corpora), flush=True)
    return corpora


def describe_plan(config: ExperimentConfig, corpora: Corpora) -> str:
    """The length of a run, for people."""
    training, places = config.training, config.data.batch_size * config.data.segment_length
    return (
        f"plan: {training.num_steps:,} steps of {places:,} tokens, "
        f"{training.num_steps * places:,} in all; "
        f"evaluations of {len(corpora.validation.tokens):,} tokens: {training.evaluations_after(0)}"
    )


class TrainingLoop:
    """Trains, logs, evaluates and saves at the configured steps.

    The work directory must be locked, and known to be new or to belong to the same run.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: Path,
        corpora: Corpora,
        line: ProgressLine,
        stop: StopRequest | None = None,
        bucket: Bucket | None = None,
    ):
        self.config = config
        self.corpora = corpora
        self.line = line
        self.stop = stop or StopRequest()
        self.clock = Stopwatch()
        self._batches = 0  # of evaluations
        self._outcome = "failed"  # until it is something else
        self._initial: dict[str, Any] = {}
        self.profile = Profile(workdir, config.training.profiled, line.end)
        keep = config.training.keep_checkpoints
        self.checkpoints = Checkpoints(
            workdir / CHECKPOINTS, keep=keep, warn=self.warn, bucket=bucket
        )
        steps = evaluation_steps(config, corpora.validation)
        self.trainer = Trainer(config, corpora.train, self.clock, self._last_finite, steps)
        try:
            if self._begin_or_continue(workdir):
                line.end(f"continuing from step {self.trainer.step:,}")
            self.first_step = self.trainer.step
            processes.decided(lambda: self._open_records(workdir))
            loss = self._validation_loss()
            if loss is not None:  # the run may have been killed before this loss was noted
                self.checkpoints.save(self.trainer.state, self.progress(), loss=loss)
        except BaseException:
            self.checkpoints.close()
            raise

    def _begin_or_continue(self, workdir: Path) -> bool:
        """Whether the run continues from a checkpoint. A new run begins with one.

        No file is changed before it is certain that the run can go on.
        """
        continues = processes.decided(lambda: bool(self.checkpoints.steps()))
        if continues:
            state, progress = self.checkpoints.restore(self.trainer.abstract_state())
            check_same_data(workdir, progress, self.progress())
            self.trainer.restore(state, progress)
            self._initial = {INITIAL: progress[INITIAL]} if INITIAL in progress else {}
            if line := processes.decided(
                lambda: check_length(workdir, self.config, self.trainer.step)
            ):
                self.line.end(line)
        else:
            self._begin()
        processes.decided(lambda: self._open_workdir(workdir, continues))
        if not continues:
            self.checkpoints.save(self.trainer.state, self.progress())
        return continues

    def _begin(self) -> None:
        """Begins a new run, from random parameters or from those of another run."""
        if source := find_source(self.config):
            model, found = read_source(source, self.config, self.trainer.mesh)
            self.trainer.begin(model)
            self._initial = {INITIAL: found}
            step = f"step {found['step']:,}"
            self.line.end(f"beginning with the parameters of {source.workdir}, {step}")
        else:
            self.trainer.begin()

    def _open_workdir(self, workdir: Path, continues: bool) -> None:
        """Makes the first changes to the files of a work directory."""
        if continues:
            read_metrics(workdir / METRICS)  # damage is noticed before anything is changed
        make_folder(workdir)
        write_config(workdir, to_gin(self.config))
        record_launch(workdir)
        if continues:
            self.checkpoints.tidy()

    def _open_records(self, workdir: Path) -> None:
        self.records = Records(workdir, self.config, self.first_step, self.checkpoints, self.warn)

    def finish(self) -> tuple[Model, Evaluation]:
        """Takes the remaining steps, and says where the time went; returns as `train` does."""
        try:
            with processes.noticing_loss():
                return self._finish()
        finally:
            if processes.is_primary():
                self.checkpoints.settle()
                times = {"seconds": self.clock.seconds, "shares": self.clock.shares()}
                self.records.summarize(self._outcome, self.trainer.step, times)
                self.line.end(self.clock.describe())

    def _finish(self) -> tuple[Model, Evaluation]:
        try:
            evaluation = self._take_steps()
            self._wait_for_save()
        except (FloatingPointError, SaveFailed):  # in all processes
            self.checkpoints.wait(strict=False)
            raise
        except Stopped as stopped:
            self.save(patience=math.inf)
            self._wait_for_save()
            self.line.end(f"{stopped}: step {self.trainer.step:,} is saved")
            self._outcome = str(stopped)
            raise
        self._outcome = "finished"
        return self.trainer.state.model, evaluation

    def _take_steps(self) -> Evaluation:
        training = self.config.training
        while self.trainer.step < training.num_steps:
            if self._is_due(training.evaluate_every) and self._validation_loss() is None:
                self.evaluate()
            self.take_step()
            stopped = self.trainer.stop_agreed if processes.several() else self.stop.signal
            if stopped:  # in all processes after the same step
                raise self._stopped()
            if self._is_due(training.checkpoint_every):
                self.save()
        self.save()
        return self.evaluate()

    def _is_due(self, every: int) -> bool:
        return self.trainer.step > 0 and self.trainer.step % every == 0

    def _validation_loss(self) -> float | None:
        """The loss of the present step, None if it has not been evaluated."""
        return processes.decided(lambda: self.records.metric(self.trainer.step, VALIDATION_LOSS))

    def _stopped(self) -> Stopped:
        """The reason is a signal to this process or to another, whose name is not known."""
        return Stopped(self.stop.signal or "SIGTERM")

    def take_step(self) -> None:
        """Takes one step, and logs it if that is due.

        Raises:
          FloatingPointError: it or the one before was not finite, and may not be skipped.
          SaveFailed: the metrics cannot be written.
        """
        self.line.compiling("the training step")
        with self.profile.step(self.trainer.step + 1, self._wait_for_devices):
            self.trainer.take_step(vote=self.stop.signal is not None)
        self.line.compiled("the training step")
        self.stop.nothing_to_save = False
        step, training = self.trainer.step, self.config.training
        if self._is_due(training.log_every) or step == training.num_steps:
            metrics = self.trainer.metrics()
            processes.decided(lambda: self.records.write(step, metrics))
            self.line.show(self.trainer.meter.describe(step, metrics))

    def evaluate(self) -> Evaluation:
        """Scores the validation documents, and keeps a checkpoint of the best model.

        Raises:
          Stopped: a stop was requested meanwhile; and what `save` raises.
        """
        trainer, documents = self.trainer, self.corpora.validation
        trainer.check_state()
        self.line.show(f"step {trainer.step:,}: evaluating")
        self.line.compiling("the evaluation")
        before = self.clock.seconds.get("evaluation", 0.0)
        with self.clock.part("evaluation"):
            found = evaluate(self.config, trainer.state.model, documents, self._while_evaluating)
        trainer.meter.add_evaluation(self.clock.seconds["evaluation"] - before)
        metrics = {f"validation/{name}": value for name, value in found.metrics().items()}
        processes.decided(lambda: self.records.write(trainer.step, metrics))
        self.line.end(f"step {trainer.step:,}: validation {found.describe()}")
        self.save(loss=found.bits_per_token)
        trainer.meter.restart_clock()
        return found

    def _while_evaluating(self, share: float) -> None:
        self.line.compiled("the evaluation")
        self._batches += 1
        ask = not processes.several() or self._batches % BATCHES_A_VOTE == 0
        if ask and processes.any_of(self.stop.signal is not None):
            raise self._stopped()
        self.line.show(f"evaluating {self.corpora.validation.origin}: {share:.0%}")

    def save(self, *, loss: float | None = None, patience: float = MOST_FAILED_SAVES - 1) -> None:
        """Begins to save a checkpoint, when all metrics and the previous one are on the disk.

        Args:
          loss: validation loss of the present step, if known.
          patience: number of failed saves in a row to tolerate.

        Raises:
          FloatingPointError: a step or the state is not finite.
          SaveFailed: several saves in a row have failed, and this is not the last attempt.
        """
        with self.clock.part("save"):
            self.trainer.check_state()
            if processes.is_primary():
                self.records.flush()
            self.checkpoints.save(self.trainer.state, self.progress(), loss=loss, patience=patience)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides arrays, as JSON values."""
        validation = {"validation": self.corpora.validation.fingerprint}
        return self.trainer.position() | validation | self._initial

    def _wait_for_devices(self) -> None:
        jax.block_until_ready(self.trainer.state)

    def _wait_for_save(self) -> None:
        with self.clock.part("save"):
            self.checkpoints.wait()

    def _last_finite(self) -> str:
        self.checkpoints.settle()
        return self.checkpoints.describe_newest("last finite checkpoint")

    def warn(self, sentence: str) -> None:
        """Shows a warning that stays on the screen."""
        self.line.end(f"WARNING: {sentence}")

    def close(self) -> None:
        """Closes files and threads, after which there is nothing to save.

        A failure is only a warning here, so that it does not hide why the run failed.
        """
        self.profile.close()
        self.checkpoints.close()
        if processes.is_primary():
            self.records.close()
        self.stop.nothing_to_save = True
