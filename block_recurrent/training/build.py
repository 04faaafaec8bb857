"""The model, the batches and the first state of a configuration."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from block_recurrent.baselines import LSTM, Transformer, TransformerXL
from block_recurrent.config import (
    AnyModelConfig,
    ExperimentConfig,
    LSTMConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from block_recurrent.data import TokenizedCorpus, TrainingLanes
from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.parameters import named_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.training.optimizer import make_optimizer
from block_recurrent.training.step import TrainState

# The model of each kind of configuration.
MODELS: Mapping[type[AnyModelConfig], Callable[..., Model]] = {
    ModelConfig: LanguageModel,
    TransformerXLConfig: TransformerXL,
    TransformerConfig: Transformer,
    LSTMConfig: LSTM,
}


def build_model(config: AnyModelConfig, rngs: nnx.Rngs) -> Model:
    """The model of a configuration with initial parameters."""
    return MODELS[type(config)](config, rngs=rngs)


def make_model(config: ExperimentConfig) -> Model:
    """The model with the initial parameters of the run's seed."""
    return build_model(config.model, nnx.Rngs(config.training.seed))


def abstract_model(config: AnyModelConfig) -> Model:
    """The model with a `jax.ShapeDtypeStruct` for every parameter; nothing is computed."""
    return jax.eval_shape(lambda: build_model(config, nnx.Rngs(0)))


def make_train_state(config: ExperimentConfig) -> TrainState:
    """The state before the run's first step."""
    model = make_model(config)
    optimizer = make_optimizer(config).init(named_parameters(model))
    carried = model.initial_state(config.data.batch_size)
    return TrainState(model, optimizer, carried, jnp.int32(0))


def abstract_train_state(config: ExperimentConfig) -> TrainState:
    """Shapes and dtypes of the state before the run's first step; nothing is computed."""
    return jax.eval_shape(partial(make_train_state, config))


def make_lanes(
    config: ExperimentConfig, corpus: TokenizedCorpus, rows: Sequence[int] | None = None
) -> TrainingLanes:
    """The endless training batches of a run, or only those rows of them that are given."""
    data, vocab_size = config.data, config.model.vocab_size
    return TrainingLanes(
        corpus, data.batch_size, data.segment_length, vocab_size, seed=data.seed, rows=rows
    )
