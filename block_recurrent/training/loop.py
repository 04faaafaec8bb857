"""The training loop: from a configuration and a work directory to a trained model."""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import (
    Batch,
    Corpus,
    TfdsDirectory,
    TokenizedCorpus,
    Tokenizer,
    TrainingLanes,
    cached_tokens,
    evaluation_batches,
    load_corpus,
    make_tokenizer,
    tokenize,
)
from block_recurrent.model import LanguageModel
from block_recurrent.partitioning import make_mesh, shard_batch
from block_recurrent.training.checkpoints import Checkpoints
from block_recurrent.training.evaluation import Evaluation, evaluate
from block_recurrent.training.metrics import MetricsFile, TensorBoard
from block_recurrent.training.optimizer import make_optimizer, make_schedule
from block_recurrent.training.progress import ProgressLine, duration
from block_recurrent.training.signals import StopRequest, stop_on_signal
from block_recurrent.training.step import (
    StepMetrics,
    initial_train_state,
    make_train_step,
    shard_train_state,
)


class Stopped(Exception):
    """A signal ended the run before its last step; the work directory holds its checkpoint."""


class Corpora(NamedTuple):
    """Two splits of a run's documents, as tokens."""

    train: TokenizedCorpus
    validation: TokenizedCorpus


def make_run_tokenizer(config: ExperimentConfig) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
      DataError: a vocabulary that cannot be used.
    """
    data = config.data
    return make_tokenizer(
        data.tokenizer, vocab_path=data.vocab_path, vocab_sha256=data.vocab_sha256
    )


def load_documents(config: ExperimentConfig, split: str) -> Corpus:
    """The text of a split, for sources that are read into memory.

    Raises:
      DataError: a source that cannot be read, or a split without documents.
    """
    data = config.data
    percent = data.validation_percent
    return load_corpus(data.source, split, path=data.path, validation_percent=percent)


def load_split(
    config: ExperimentConfig, split: str, line: ProgressLine | None = None
) -> TokenizedCorpus:
    """The documents of "train", "validation" or "test", as the configuration names them.

    A prepared corpus is read through its token cache, which the first run makes.

    Raises:
      DataError: a source that cannot be read, or a split without documents.
    """
    data, tokenizer = config.data, make_run_tokenizer(config)
    if data.source == "tfds":
        assert data.path is not None
        corpus = TfdsDirectory(data.path)
        cache_path = Path(data.cache_path or Path(data.path) / "token_cache")
        return cached_tokens(corpus, split, tokenizer, cache_path, _show_tokenizing(split, line))
    return tokenize(load_documents(config, split), tokenizer)


def _show_tokenizing(split: str, line: ProgressLine | None) -> Callable[[int], None] | None:
    if line is None:
        return None
    return lambda size: line.show(f"tokenizing {split}, once: {size / 1e6:,.0f} MB")


def load_corpora(config: ExperimentConfig, line: ProgressLine | None = None) -> Corpora:
    """Both splits of a training run; errors as of `load_split`."""
    return Corpora(load_split(config, "train", line), load_split(config, "validation", line))


def make_model(config: ExperimentConfig) -> LanguageModel:
    """The model with the initial parameters of the run's seed."""
    return LanguageModel(config.model, rngs=nnx.Rngs(config.training.seed))


def make_lanes(config: ExperimentConfig, corpus: TokenizedCorpus) -> TrainingLanes:
    """The endless training batches of the run."""
    data, vocab_size = config.data, config.model.vocab_size
    return TrainingLanes(corpus, data.batch_size, data.segment_length, vocab_size, seed=data.seed)


def evaluate_run(
    config: ExperimentConfig,
    model: LanguageModel,
    corpus: TokenizedCorpus,
    line: ProgressLine | None = None,
) -> Evaluation:
    """Scores `corpus` in the run's batch size and segment length."""
    data = config.data

    def show(tokens: int) -> None:
        if line is not None:
            line.show(f"evaluating {corpus.origin}: {tokens / len(corpus.tokens):.0%}")

    batches = evaluation_batches(
        corpus, data.batch_size, data.segment_length, config.model.vocab_size
    )
    return evaluate(
        model,
        corpus,
        batches,
        batch_size=data.batch_size,
        clear_states=config.training.clear_states,
        progress=show,
    )


def train(
    config: ExperimentConfig,
    workdir: str | os.PathLike[str],
    corpora: Corpora | None = None,
    *,
    line: ProgressLine | None = None,
) -> tuple[LanguageModel, Evaluation]:
    """Trains to the configured number of steps, from the newest checkpoint if there is one.

    Args:
      config: of the run.
      workdir: holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      corpora: the documents; read as configured unless given.
      line: shows progress; on standard error unless given.

    Returns:
      The trained model and its evaluation on the validation documents.

    Raises:
      Stopped: SIGINT or SIGTERM came; a checkpoint was saved.
      FloatingPointError: the loss is no longer finite.
    """
    run = Run(config, Path(workdir), corpora or load_corpora(config), line or ProgressLine())
    try:
        with stop_on_signal() as stop:
            return run.finish(stop)
    finally:
        run.close()


class Run:
    """A run in progress: what `train` moves forward, step by step."""

    def __init__(
        self, config: ExperimentConfig, workdir: Path, corpora: Corpora, line: ProgressLine
    ):
        self.config = config
        self.corpora = corpora
        self.line = line
        workdir.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", keep=config.training.keep_checkpoints
        )
        self.lanes = make_lanes(config, corpora.train)
        model = make_model(config)
        steps = config.training.num_steps
        optimizer = make_optimizer(config.optimizer, steps, model.stack.spans)
        self.schedule = make_schedule(config.optimizer, steps)
        self.mesh = make_mesh(config.data.batch_size)
        state = initial_train_state(model, optimizer, config.data.batch_size)
        self.state = shard_train_state(self.mesh, state)
        dropout_key = jax.random.fold_in(jax.random.key(config.training.seed), 1)
        self.train_step = make_train_step(optimizer, dropout_key, config.training.clear_states)
        self.meter = Meter(steps)
        if self.checkpoints.latest_step() is not None:
            self.state, progress = self.checkpoints.restore(self.state)
            self.lanes.restore(progress["lanes"])
            self.meter.restore(progress["unlogged"])
            self.line.end(f"continuing from step {int(self.state.step):,}")
        self.step = int(self.state.step)
        self.metrics = MetricsFile(workdir / "metrics.jsonl", step=self.step)
        self.board = TensorBoard(workdir / "tensorboard", step=self.step)

    def close(self) -> None:
        """Closes files and threads."""
        self.checkpoints.close()
        self.board.close()

    def finish(self, stop: StopRequest) -> tuple[LanguageModel, Evaluation]:
        """Takes the steps that are left; arguments and result as of `train`."""
        training = self.config.training
        while self.step < training.num_steps:
            self.state, metrics = self.train_step(self.state, self.next_batch())
            self.step += 1
            self.meter.add(metrics)
            last = self.step == training.num_steps
            if last or self.step % training.log_every == 0:
                self.log()
            if not last and self.step % training.evaluate_every == 0:
                self.evaluate()
                self.meter.restart_clock()
            if stop.signal:
                self.save()
                self.line.end(f"stopped by {stop.signal}: step {self.step:,} is saved")
                raise Stopped(f"{stop.signal} at step {self.step:,}")
            if last or self.step % training.checkpoint_every == 0:
                self.save()
        return self.state.model, self.evaluate()

    def next_batch(self) -> Batch:
        """The next segment of every lane, on the devices."""
        return shard_batch(self.mesh, next(self.lanes))

    def log(self) -> None:
        """Writes the figures since the last log, and the progress line."""
        self.check_finite()
        figures = self.meter.collect()
        figures["learning_rate"] = float(jnp.asarray(self.schedule(self.step - 1)))
        self.metrics.write(self.step, figures)
        self.board.write(self.step, figures)
        self.line.show(self.meter.describe(self.step, figures))

    def check_finite(self) -> None:
        """Raises FloatingPointError if a loss since the last log is not finite."""
        if not all(math.isfinite(metrics.nats) for metrics in self.meter.settle()):
            raise FloatingPointError(
                f"the loss is not finite by step {self.step:,}: lower the learning rate or set "
                f"optimizer.clip_norm; the last checkpoint is from step "
                f"{self.checkpoints.latest_step() or 0:,}"
            )

    def evaluate(self) -> Evaluation:
        """Scores the validation documents and writes the figures."""
        evaluation = evaluate_run(self.config, self.state.model, self.corpora.validation, self.line)
        figures = {f"validation/{name}": value for name, value in evaluation.figures().items()}
        self.metrics.write(self.step, figures)
        self.board.write(self.step, figures)
        self.line.end(
            f"step {self.step:,}: validation {evaluation.bits_per_token:.4f} bits/token, "
            f"{evaluation.bits_per_byte:.4f} bits/byte, perplexity {evaluation.perplexity:.3f} "
            f"({evaluation.tokens:,} tokens)"
        )
        return evaluation

    def save(self) -> None:
        """Saves a checkpoint of the present step, unless the loss is not finite."""
        self.check_finite()
        unlogged = [list(metrics) for metrics in self.meter.settle()]
        self.checkpoints.save(self.state, {"lanes": self.lanes.position, "unlogged": unlogged})


class Meter:
    """Figures between two logs, and the speed, in which the compiling first step is left out."""

    def __init__(self, num_steps: int):
        self.num_steps = num_steps
        self._pending: list[StepMetrics] = []
        self._clock: float | None = None
        self._untimed = 0
        self._seconds_per_step = 0.0

    def restore(self, unlogged: Sequence[Sequence[float]]) -> None:
        """Takes the figures of steps that an earlier run left unlogged."""
        self._pending = [StepMetrics(*figures) for figures in unlogged]

    def add(self, metrics: StepMetrics) -> None:
        """Takes a step's figures, which may still be being computed."""
        self._pending.append(metrics)
        if self._clock is None:
            jax.block_until_ready(metrics)
            self._untimed = len(self._pending)
            self.restart_clock()

    def settle(self) -> list[StepMetrics]:
        """The figures of the steps since the last log as numbers; waits for them."""
        settled = jax.device_get(self._pending)
        self._pending = [StepMetrics(*map(float, metrics)) for metrics in settled]
        return self._pending

    def restart_clock(self) -> None:
        """Leaves out of the speed what happened since the last log."""
        self._clock = time.monotonic()

    def collect(self) -> dict[str, float]:
        """Figures since the last log; waits for them."""
        assert self._clock is not None
        collected = self.settle()
        seconds = time.monotonic() - self._clock
        nats = sum(metrics.nats for metrics in collected)
        targets = sum(metrics.targets for metrics in collected)
        timed = len(collected) - self._untimed
        self._seconds_per_step = seconds / max(timed, 1)
        self._pending, self._untimed = [], 0
        self.restart_clock()
        return {
            "bits_per_token": nats / max(targets, 1.0) / math.log(2),
            "gradient_norm": collected[-1].gradient_norm,
            "targets": targets,
            "tokens_per_second": targets / len(collected) / max(self._seconds_per_step, 1e-9),
        }

    def describe(self, step: int, figures: dict[str, float]) -> str:
        """The progress line."""
        left = duration((self.num_steps - step) * self._seconds_per_step)
        return (
            f"step {step:,}/{self.num_steps:,} | {figures['bits_per_token']:.3f} bits/token | "
            f"{figures['tokens_per_second']:,.0f} tokens/s | {left} left"
        )
