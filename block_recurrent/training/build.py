"""What a configuration means: its documents, tokenizer, model, batches and evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from flax import nnx

from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.data import (
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
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import StopRequest
from block_recurrent.training.evaluation import Evaluation, evaluate
from block_recurrent.training.optimizer import make_optimizer
from block_recurrent.training.step import TrainState, initial_train_state


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


def abstract_model(config: ModelConfig) -> LanguageModel:
    """The model with a `jax.ShapeDtypeStruct` for every parameter; nothing is computed."""
    return jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))


def make_run_optimizer(config: ExperimentConfig) -> optax.GradientTransformation:
    """The optimizer of the run's model."""
    return make_optimizer(config)


def make_train_state(config: ExperimentConfig) -> TrainState:
    """The state before the run's first step."""
    optimizer = make_run_optimizer(config)
    return initial_train_state(make_model(config), optimizer, config.data.batch_size)


def make_lanes(config: ExperimentConfig, corpus: TokenizedCorpus) -> TrainingLanes:
    """The endless training batches of the run."""
    data, vocab_size = config.data, config.model.vocab_size
    return TrainingLanes(corpus, data.batch_size, data.segment_length, vocab_size, seed=data.seed)


def evaluate_run(
    config: ExperimentConfig,
    model: LanguageModel,
    corpus: TokenizedCorpus,
    line: ProgressLine | None = None,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Scores `corpus` in the run's batch size and segment length.

    Raises:
      Stopped: a signal came meanwhile.
    """
    data = config.data

    def show(tokens: int) -> None:
        if stop is not None:
            stop.check()
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
