"""Laws of the configurations: every wrong value is refused with a sentence that says how."""

import dataclasses
import inspect

import pytest

from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    DataConfig,
    ExperimentConfig,
    LayerConfig,
    LSTMConfig,
    ModelConfig,
    MuonConfig,
    TrainingConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from tests.helpers import SIZES

MODEL = {"vocab_size": 256}
NOTHING_SEEN = {"same_length": True, "memory": 0}
BASELINES = [TransformerXLConfig, TransformerConfig, LSTMConfig]
OPTIMIZERS = [AdafactorConfig, AdamWConfig, MuonConfig]
CONFIGS = [LayerConfig, ModelConfig, *BASELINES, DataConfig, *OPTIMIZERS, TrainingConfig]

BASELINE_SIZES = ["vocab_size", "num_layers", "model_size"]
HEADS = ["num_heads", "head_size", "mlp_size"]
SCHEDULE = ["learning_rate", "warmup_steps", "clip_norm"]
POSITIVE = {
    LayerConfig: [*SIZES],
    ModelConfig: [*SIZES, "vocab_size", "num_layers"],
    TransformerXLConfig: [*BASELINE_SIZES, *HEADS],
    TransformerConfig: [*BASELINE_SIZES, *HEADS, "segment"],
    LSTMConfig: [*BASELINE_SIZES, "hidden_size"],
    DataConfig: ["batch_size", "segment_length"],
    AdafactorConfig: [*SCHEDULE, "decay_rate", "clipping_threshold", "eps1"],
    AdamWConfig: [*SCHEDULE, "eps"],
    MuonConfig: [*SCHEDULE, "eps"],
    TrainingConfig: [
        field.name
        for field in dataclasses.fields(TrainingConfig)
        if field.type is int and field.name != "seed"
    ],
}

WRONG = [
    (LayerConfig, {"dropout": 1.0}, ValueError, "dropout must be in [0, 1), not 1.0"),
    (LayerConfig, {"dropout": -0.1}, ValueError, "dropout must be in [0, 1), not -0.1"),
    (LayerConfig, {"dropout": float("nan")}, ValueError, "dropout must be finite, not nan"),
    (LayerConfig, {"dropout": 10**400}, ValueError, "between -2**63 and 2**63, but has 1329 bits"),
    (LayerConfig, {"window": 2**63}, ValueError, "between -2**63 and 2**63, but has 64 bits"),
    (LayerConfig, {"gate": "gru"}, ValueError, "gate must be one of 'fixed', 'lstm', not 'gru'"),
    (LayerConfig, {"gate": "lstn"}, ValueError, "did you mean 'lstm'"),
    (LayerConfig, {"gate": 1}, ValueError, "gate must be one of 'fixed', 'lstm', not 1"),
    (LayerConfig, {"wiring": "duel"}, ValueError, "did you mean 'dual'"),
    (LayerConfig, {"positions": "T5"}, ValueError, "must be one of 't5', 'rotary', not 'T5'"),
    (LayerConfig, {"dtype": "float16"}, ValueError, "dtype must be one of 'float32', 'bfloat16'"),
    (LayerConfig, {"window": 4.0}, TypeError, "LayerConfig.window must be int, not 4.0 (float)"),
    (LayerConfig, {"window": True}, TypeError, "window must be int, not True (bool)"),
    (LayerConfig, {"window": None}, TypeError, "window must be int, not None"),
    (LayerConfig, {"dropout": "0.1"}, TypeError, "dropout must be float, not '0.1' (str)"),
    (LayerConfig, {"positions": "rotary", "head_size": 5}, ValueError, "even head_size, not 5"),
    (LayerConfig, {"vocab_size": 5}, TypeError, "unexpected keyword argument 'vocab_size'"),
    (ModelConfig, {}, TypeError, "vocab_size"),
    (ModelConfig, MODEL | {"recurrent_layers": (12,)}, ValueError, "layer 12 is outside the 12"),
    (ModelConfig, MODEL | {"recurrent_layers": (-13,)}, ValueError, "allowed: -12 to 11"),
    (ModelConfig, MODEL | {"recurrent_layers": (9, -3)}, ValueError, "(9, -3) names a layer twice"),
    (ModelConfig, MODEL | {"recurrent_layers": [9]}, TypeError, "recurrent_layers must be tuple"),
    (ModelConfig, MODEL | {"recurrent_layers": 9}, TypeError, "not 9 (int); write (9,)"),
    (ModelConfig, MODEL | {"recurrent_layers": (9.0,)}, TypeError, "must be tuple[int, ...]"),
    (ModelConfig, MODEL | {"feedback": True}, ValueError, "feedback needs a recurrent layer"),
    (
        ModelConfig,
        MODEL | {"recurrent_layers": (9,), "detach_windows": True},
        ValueError,
        "detach_windows is for models without recurrent layers",
    ),
    (ModelConfig, MODEL | {"feedback": 1}, TypeError, "feedback must be bool, not 1 (int)"),
    (ModelConfig, MODEL | {"remat": "full"}, ValueError, "one of 'none', 'layer', 'dots'"),
    (TransformerXLConfig, {}, TypeError, "vocab_size"),
    (TransformerXLConfig, MODEL | {"memory": -1}, ValueError, "memory must be at least 0, not -1"),
    (TransformerXLConfig, MODEL | NOTHING_SEEN, ValueError, "same_length needs a memory"),
    (
        TransformerXLConfig,
        MODEL | {"clamp_length": 0},
        ValueError,
        "or -1 for no limit, not 0",
    ),
    (TransformerXLConfig, MODEL | {"model_size": 7}, ValueError, "an even model_size, not 7"),
    (
        TransformerConfig,
        MODEL | {"architecture": "lstm"},
        ValueError,
        "one of 'transformer'",
    ),
    (LSTMConfig, MODEL | {"dropout": 1.0}, ValueError, "dropout must be in [0, 1), not 1.0"),
    (DataConfig, {"source": "json"}, ValueError, "did you mean 'jsonl'"),
    (DataConfig, {"source": "jsonl"}, ValueError, "source 'jsonl' needs a path; set data.path"),
    (DataConfig, {"source": "text"}, ValueError, "source 'text' needs a path; set data.path"),
    (
        DataConfig,
        {"path": "books"},
        ValueError,
        "source 'stdlib' takes no path; set data.path = None",
    ),
    (DataConfig, {"tokenizer": "words"}, ValueError, "tokenizer must be one of 'bytes'"),
    (
        DataConfig,
        {"tokenizer": "huggingface"},
        ValueError,
        "needs a vocab_path; set data.vocab_path",
    ),
    (
        DataConfig,
        {"vocab_path": "tokenizer.json"},
        ValueError,
        "takes no vocab_path; set data.vocab_path = None",
    ),
    (
        DataConfig,
        {"tokenizer": "tiktoken", "vocab_path": "x", "vocab_sha256": "0" * 64},
        ValueError,
        "needs a vocab_pattern; set data.vocab_pattern",
    ),
    (DataConfig, {"validation_percent": 0}, ValueError, "between 1 and 99, not 0"),
    (DataConfig, {"validation_percent": 100}, ValueError, "between 1 and 99, not 100"),
    (TrainingConfig, {"non_finite": "skp"}, ValueError, "did you mean 'skip'"),
    (TrainingConfig, {"clear_states": 1}, TypeError, "clear_states must be bool, not 1"),
    (
        TrainingConfig,
        {"state_passing": 1.5},
        ValueError,
        "state_passing must be in [0, 1], not 1.5",
    ),
    (
        TrainingConfig,
        {"state_passing": 0.5, "clear_states": True},
        ValueError,
        "leaves no states to pass on; set state_passing = 0.0",
    ),
    *(
        (TrainingConfig, {"profile_steps": steps}, ValueError, f"of the run, not {steps!r}")
        for steps in ("10", "12:10", "0:3", "499999:500001", "1:2:3", "a:b")
    ),
    (AdamWConfig, {"name": "adam"}, ValueError, "did you mean 'adamw'"),
    (AdamWConfig, {"schedule": "linear"}, ValueError, "one of 'rsqrt', 'cosine'"),
    (AdafactorConfig, {"final_learning_rate": 0.1}, ValueError, "belongs to the cosine schedule"),
    (AdafactorConfig, {"weight_decay": 0.1}, TypeError, "unexpected keyword argument"),
    (AdafactorConfig, {"momentum": 1.0}, ValueError, "momentum must be in [0, 1), not 1.0"),
    (AdamWConfig, {"b1": 1.0}, ValueError, "b1 must be in [0, 1), not 1.0"),
    (MuonConfig, {"beta": 1.0}, ValueError, "beta must be in [0, 1), not 1.0"),
    (AdamWConfig, {"b2": -0.1}, ValueError, "b2 must be in [0, 1), not -0.1"),
    (AdamWConfig, {"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0, not -0.1"),
    (ExperimentConfig, {"model": MODEL}, TypeError, "ExperimentConfig.model must be ModelConfig"),
    (
        ExperimentConfig,
        {"model": ModelConfig(**MODEL), "data": DataConfig(segment_length=1000)},
        ValueError,
        "data.segment_length 1000 is no multiple of model.window 512",
    ),
    (
        ExperimentConfig,
        {"model": ModelConfig(**MODEL), "training": TrainingConfig(accumulate_steps=5)},
        ValueError,
        "data.batch_size 32 is no multiple of training.accumulate_steps 5",
    ),
    (
        ExperimentConfig,
        {"model": ModelConfig(vocab_size=255)},
        ValueError,
        "bytes need model.vocab_size of at least 256, not 255",
    ),
]


def build(kind, **fields):
    needs_vocabulary = kind in (ModelConfig, *BASELINES)
    return kind(**(MODEL if needs_vocabulary else {}) | fields)


@pytest.mark.parametrize("kind, fields, error, words", WRONG, ids=lambda x: None)
def test_wrong_values_are_refused(kind, fields, error, words):
    with pytest.raises(error) as caught:
        kind(**fields)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, names in POSITIVE.items() for name in names]
)
def test_sizes_and_counts_must_be_positive(kind, name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name} must be positive, not"):
            build(kind, **{name: value})
    build(kind, **{name: 2})


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_are_frozen_values(kind):
    config = build(kind)
    assert config == build(kind) and hash(config) == hash(build(kind))
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))


@pytest.mark.parametrize("kind", CONFIGS)
def test_fields_are_passed_by_name_and_documented(kind):
    with pytest.raises(TypeError, match="positional argument"):
        kind(256)
    documented = "\n".join(inspect.getdoc(base) or "" for base in kind.__mro__)
    for field in dataclasses.fields(kind):
        assert f"\n  {field.name}: " in documented, field.name


def test_an_int_is_a_float_and_none_turns_clipping_off():
    assert AdafactorConfig(learning_rate=1, clip_norm=None).clip_norm is None
    assert LayerConfig(dropout=0).dropout == 0.0


def test_recurrent_indices_are_sorted_and_counted_from_zero():
    assert ModelConfig(**MODEL, recurrent_layers=(-1, 4)).recurrent_indices == (4, 11)
    assert ModelConfig(**MODEL).recurrent_indices == ()


@pytest.mark.parametrize("steps, every", [(9, 4), (8, 4), (3, 4), (1, 1), (12, 3)])
def test_evaluations_to_come_are_those_of_the_loop(steps, every):
    """One before each step that follows a multiple of `evaluate_every`, and one at the end."""
    training = TrainingConfig(num_steps=steps, evaluate_every=every)
    for taken in range(steps + 1):
        due = [step for step in range(max(taken, 1), steps) if step % every == 0]
        assert training.evaluations_after(taken) == len(due) + 1


def test_defaults_are_the_papers():
    config = ModelConfig(**MODEL)
    assert (config.model_size, config.mlp_size, config.num_layers) == (1024, 4096, 12)
    assert (config.num_heads, config.head_size) == (8, 128)
    assert config.window == config.num_states == 512
    assert (config.gate, config.wiring, config.positions) == ("fixed", "skip", "t5")
    assert DataConfig().batch_size * DataConfig().segment_length == 2**17
