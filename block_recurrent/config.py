"""Frozen, typed configurations; every one is validated when it is built.

Sizes are in the letters of the README: E `model_size`, H `num_heads`, D `head_size`, M `mlp_size`,
W `window`, S `num_states`, V `vocab_size`, L `num_layers`, B `batch_size`, N `segment_length`.
"""

import dataclasses
import math
import re
import types
import typing
from pathlib import PurePath
from typing import Any, Literal

from block_recurrent.system.text import did_you_mean


class ConfigError(ValueError):
    """A configuration, a gin file or a command line is wrong; the message says what and where."""


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(item, arguments[0]) for item in value)
    if hint in (int, float):
        known = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return known and math.isfinite(value)
    return isinstance(value, hint)


def _type_error(owner: str, name: str, value: Any, hint: Any) -> Exception:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        allowed = ", ".join(map(repr, choices))
        hint_text = did_you_mean(value, choices) if isinstance(value, str) else ""
        return ValueError(f"{owner}.{name} must be one of {allowed}, not {value!r}{hint_text}")
    if isinstance(value, float) and not math.isfinite(value):
        return ValueError(f"{owner}.{name} must be finite, not {value}")
    expected = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
    sentence = f"{owner}.{name} must be {expected}, not {value!r} ({type(value).__name__})"
    if typing.get_origin(hint) is tuple and _has_type(value, typing.get_args(hint)[0]):
        sentence += f"; write ({value!r},)"
    return TypeError(sentence)


class _Checked:
    """Base of the configurations: checks the type of every field."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if not _has_type(value, hints[field.name]):
                raise _type_error(type(self).__name__, field.name, value, hints[field.name])
        self._validate()

    def _validate(self) -> None:
        """Raises ValueError if values of the right type do not fit together."""

    def _require(self, holds: bool, sentence: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {sentence}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name} must be positive, not {value}")

    def _require_fraction(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value is None or 0 <= value < 1, f"{name} must be in [0, 1), not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig(_Checked):
    """One layer, plain or recurrent (paper, sections 3 and 3.1).

    Attributes:
      model_size: E, size of the residual stream.
      num_heads: H, attention heads of tokens and of states.
      head_size: D, size of a head's queries, keys and values.
      mlp_size: M, hidden size of the MLP.
      window: W, how many tokens back a token sees; also the block length of the recurrence.
      num_states: S, state vectors of a recurrent layer.
      gate: gate of the state update, "fixed" or "lstm" (section 3.2).
      wiring: "skip", "single" or "dual" residual wiring of the state update (section 3.2).
      positions: "t5" relative bias or "rotary" embedding, on token self-attention only.
      dropout: rate, applied only when a call is given a key.
      dtype: dtype of activations; parameters, norms, softmax, gates and states are float32.
      attention: what computes attention: "xla" (plain array arithmetic, the reference), "tiled"
        (for CPUs and GPUs), "pallas" (kernels for TPUs, in windows and head sizes that suit them; a
        CPU interprets them, slowly, which is for tests), "cudnn" (NVIDIA's library, bfloat16
        without dropout), or "auto", the best that is possible where the model is built, "cudnn"
        left out. All compute the same, but "pallas" drops other probabilities.
    """

    model_size: int = 1024
    num_heads: int = 8
    head_size: int = 128
    mlp_size: int = 4096
    window: int = 512
    num_states: int = 512
    gate: Literal["fixed", "lstm"] = "fixed"
    wiring: Literal["skip", "single", "dual"] = "skip"
    positions: Literal["t5", "rotary"] = "t5"
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "xla", "tiled", "pallas", "cudnn"] = "auto"

    def _validate(self) -> None:
        self._require_positive("model_size", "num_heads", "head_size", "mlp_size", "window")
        self._require_positive("num_states")
        self._require_fraction("dropout")
        self._require(
            self.positions != "rotary" or self.head_size % 2 == 0,
            f"rotary positions need an even head_size, not {self.head_size}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LayerConfig):
    """The language model: Transformer-XL, sliding window and block-recurrent alike.

    Attributes:
      architecture: tells this configuration from those of the baselines.
      vocab_size: V, token ids are in [0, V).
      num_layers: L, number of layers.
      recurrent_layers: indices of the recurrent layers, negative ones counted from the end. Without
        any the model is Transformer-XL (segments of one window) or Slide (of several).
      feedback: every other layer also attends to the state of the last recurrent layer.
      detach_windows: no gradient reaches the keys and values of the window before. A segment of
        several windows is then several segments of Transformer-XL, one window each, side by side.
      scan_layers: run stacked plain layers as one compiled loop, which compiles faster, or unroll
        the loop, which runs faster on a CPU; unless given, they are unrolled on a CPU in models of
        fewer than 24 layers.
      remat: what the backward pass computes again: "none", "layer" (everything inside a layer) or
        "dots" (everything but the results of projections); with both, every state update too.
      logits_by_window: compute logits, loss and its gradients of one window of a segment after the
        other, which saves memory and time where the vocabulary is large.
    """

    architecture: Literal["block_recurrent"] = "block_recurrent"
    vocab_size: int
    num_layers: int = 12
    recurrent_layers: tuple[int, ...] = ()
    feedback: bool = False
    detach_windows: bool = False
    scan_layers: bool | None = None
    remat: Literal["none", "layer", "dots"] = "none"
    logits_by_window: bool = False

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("vocab_size", "num_layers")
        for index in self.recurrent_layers:
            self._require(
                -self.num_layers <= index < self.num_layers,
                f"recurrent_layers {self.recurrent_layers}: layer {index} is outside the "
                f"{self.num_layers} layers (allowed: {-self.num_layers} to {self.num_layers - 1})",
            )
        self._require(
            len(set(self.recurrent_indices)) == len(self.recurrent_layers),
            f"recurrent_layers {self.recurrent_layers} names a layer twice",
        )
        self._require(
            bool(self.recurrent_layers) or not self.feedback,
            "feedback needs a recurrent layer; recurrent_layers is empty",
        )
        self._require(
            not (self.recurrent_layers and self.detach_windows),
            "detach_windows is for models without recurrent layers, as Transformer-XL is",
        )

    @property
    def recurrent_indices(self) -> tuple[int, ...]:
        """The recurrent layers as sorted indices from 0."""
        return tuple(sorted(index % self.num_layers for index in self.recurrent_layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BaselineConfig(_Checked):
    """What the configurations of all baselines have."""

    vocab_size: int
    num_layers: int = 12
    model_size: int = 1024
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "layer", "dots"] = "none"

    def _validate(self) -> None:
        self._require_positive("vocab_size", "num_layers", "model_size")
        self._require_fraction("dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeConfig(_BaselineConfig):
    """What Transformer-XL and the vanilla Transformer share: layers with sinusoidal relative
    positions (Dai et al. 2019, section 3.3).

    Attributes:
      vocab_size: V, token ids are in [0, V).
      num_layers: L, number of layers.
      model_size: E, size of the residual stream; even, for sines and cosines.
      num_heads: H, attention heads.
      head_size: D, size of a head's queries, keys and values.
      mlp_size: M, hidden size of the MLP.
      dropout: rate, applied only when a call is given a key.
      dtype: dtype of activations; parameters, norms and softmax are float32.
      remat: what the backward pass computes again, as `ModelConfig.remat`.
    """

    num_heads: int = 8
    head_size: int = 128
    mlp_size: int = 4096

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("num_heads", "head_size", "mlp_size")
        self._require(
            self.model_size % 2 == 0,
            f"sinusoidal positions need an even model_size, not {self.model_size}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(RelativeConfig):
    """Transformer-XL as its own paper has it (Dai et al. 2019, arXiv 1901.02860).

    The Transformer-XL rows of the Block-Recurrent Transformer's Table 1 are another model:
    `ModelConfig` without recurrent layers, in segments of one window.

    Attributes:
      architecture: tells this configuration from the others.
      memory: how many inputs of each layer are carried from one segment to the next; may be 0.
      segment: a longer call is read as segments of so many tokens; None for calls that are one.
      same_length: each token sees exactly the `memory` newest keys, its own among them, and not
        all that the memory and its segment have.
      clamp_length: larger distances count as this one; None or, as the authors write it, -1
        for no limit.
    """

    architecture: Literal["transformer_xl"] = "transformer_xl"
    memory: int = 512
    segment: int | None = None
    same_length: bool = False
    clamp_length: int | None = None

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("segment")
        self._require(self.memory >= 0, f"memory must be at least 0, not {self.memory}")
        self._require(
            self.memory > 0 or not self.same_length,
            "same_length needs a memory of at least 1, not 0: no token would see anything",
        )
        self._require(
            self.clamp_length is None or self.clamp_length == -1 or self.clamp_length > 0,
            f"clamp_length must be positive, or None or -1 for no limit, not {self.clamp_length}",
        )

    @property
    def largest_distance(self) -> int | None:
        """The distance that all larger ones count as, if there is one."""
        return None if self.clamp_length == -1 else self.clamp_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(RelativeConfig):
    """The vanilla Transformer: Transformer-XL's layers on segments that know nothing of another.

    Attributes:
      architecture: tells this configuration from the others.
      segment: how many tokens make a segment; a token sees those of its segment up to itself.
    """

    architecture: Literal["transformer"] = "transformer"
    segment: int = 512

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("segment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig(_BaselineConfig):
    """A stack of LSTMs with residual connections.

    Attributes:
      architecture: tells this configuration from the others.
      vocab_size: V, token ids are in [0, V).
      num_layers: L, number of layers.
      model_size: E, size of the residual stream.
      hidden_size: units of a layer's cell and hidden state.
      dropout: rate, applied only when a call is given a key.
      dtype: dtype of activations; parameters, norms and the carried state are float32.
      remat: what the backward pass computes again, as `ModelConfig.remat`.
    """

    architecture: Literal["lstm"] = "lstm"
    hidden_size: int = 1248

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("hidden_size")


AnyModelConfig = ModelConfig | TransformerXLConfig | TransformerConfig | LSTMConfig
if typing.TYPE_CHECKING:
    _OneOfThem = Any  # who reads an experiment's model mostly knows which kind it is
else:
    _OneOfThem = AnyModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """Documents, and how batch rows and segments are cut from them.

    Attributes:
      source: "stdlib" or "site_packages" (the running interpreter's Python source code), "jsonl"
        (a file, or a directory with train and validation files), "text" (a directory of *.txt) or
        "tfds" (a directory that `experiments/prepare_data.py` or tensorflow-datasets wrote).
      path: file or directory of "jsonl", "text" and "tfds".
      name: name of the corpus, by which tables find their column; unless given, it is the last
        part of `path`, or the source.
      tokenizer: "bytes", or "sentencepiece" with the vocabulary in `vocab_path`.
      vocab_path: SentencePiece model file.
      vocab_sha256: hexadecimal SHA-256 of that file, so that a run says which one it means.
      cache_path: folder for the tokens of a "tfds" corpus; unless given, `token_cache` in `path`.
      batch_size: B, number of batch rows.
      segment_length: N, tokens of a row per step, a multiple of the model's window, or of its
        `segment`.
      validation_percent: share of documents held out, where the source has no split of its own.
      seed: order of the training documents.
    """

    source: Literal["stdlib", "site_packages", "jsonl", "text", "tfds"] = "stdlib"
    path: str | None = None
    name: str | None = None
    tokenizer: Literal["bytes", "sentencepiece"] = "bytes"
    vocab_path: str | None = None
    vocab_sha256: str | None = None
    cache_path: str | None = None
    batch_size: int = 32
    segment_length: int = 4096
    validation_percent: int = 10
    seed: int = 0

    def _validate(self) -> None:
        self._require_positive("batch_size", "segment_length")
        self._require(self.seed >= 0, f"seed must be at least 0, not {self.seed}")
        self._require(
            0 < self.validation_percent < 100,
            f"validation_percent must be between 1 and 99, not {self.validation_percent}",
        )
        needs_path = self.source in ("jsonl", "text", "tfds")
        self._require(
            needs_path == (self.path is not None),
            f"source {self.source!r} {_needed_or_not('path', needs_path)}",
        )
        self._require(
            self.source == "tfds" or self.cache_path is None,
            f"cache_path belongs to source 'tfds', not to {self.source!r}",
        )
        for name in ("vocab_path", "vocab_sha256"):
            needed, given = self.tokenizer == "sentencepiece", getattr(self, name) is not None
            self._require(
                needed == given,
                f"tokenizer {self.tokenizer!r} {_needed_or_not(name, needed)}",
            )
        self._require(
            bool(re.fullmatch("[0-9a-f]{64}", self.vocab_sha256 or "0" * 64)),
            f"vocab_sha256 must be 64 hexadecimal digits, not {self.vocab_sha256!r}",
        )

    @property
    def corpus_name(self) -> str:
        """What tables call the corpus."""
        return self.name or PurePath(self.path or "").name or self.source


def _needed_or_not(name: str, needed: bool) -> str:
    if needed:
        return f"needs a {name}; set data.{name}"
    return f"takes no {name}; leave data.{name} out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Checked):
    """What the configurations of all optimizers have: the schedule of the learning rate, clipping.

    Attributes:
      schedule: "rsqrt", `learning_rate / sqrt(max(step, warmup_steps))`, or "cosine", from
        `learning_rate` to `final_learning_rate` over the run; both after a linear ramp.
      learning_rate: factor of "rsqrt", peak of "cosine".
      final_learning_rate: end of "cosine".
      warmup_steps: length of the linear ramp.
      clip_norm: gradients are scaled down to this global norm; None leaves them alone.
    """

    schedule: Literal["rsqrt", "cosine"] = "rsqrt"
    learning_rate: float = 1.0
    final_learning_rate: float = 0.0
    warmup_steps: int = 1000
    clip_norm: float | None = None

    def _validate(self) -> None:
        self._require_positive("learning_rate", "warmup_steps", "clip_norm")
        self._require(
            self.schedule == "cosine" or self.final_learning_rate == 0.0,
            "final_learning_rate belongs to the cosine schedule",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), the paper's optimizer (section 4).

    Attributes:
      name: tells this configuration from those of the other optimizers.
      decay_rate: at step t the second moment keeps 1 - t ** -decay_rate of its value.
      momentum: decay of the average of updates; None for no average, which saves memory.
      clipping_threshold: each parameter's update is scaled down to this root mean square; None
        leaves it alone.
      multiply_by_parameter_scale: updates are multiplied by their parameter's root mean square.
      eps1: added to squared gradients, as in Adafactor's paper.
    """

    name: Literal["adafactor"] = "adafactor"
    decay_rate: float = 0.8
    momentum: float | None = 0.9
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    eps1: float = 1e-30

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("decay_rate", "clipping_threshold", "eps1")
        self._require_fraction("momentum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

    Attributes:
      name: tells this configuration from those of the other optimizers.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay of kernels, times the learning rate.
    """

    name: Literal["adamw"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0

    def _validate(self) -> None:
        super()._validate()
        self._require_positive("eps")
        self._require_fraction("b1", "b2")
        self._require(
            self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}"
        )


AnyOptimizerConfig = AdafactorConfig | AdamWConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Checked):
    """Length and rhythm of a run, all in steps.

    Attributes:
      num_steps: steps of the whole run.
      seed: initial parameters and dropout.
      log_every: steps between lines of metrics.
      evaluate_every: steps between evaluations; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the newest checkpoints stay.
      bucket: where copies of the checkpoints go, gs://BUCKET/PATH or s3://BUCKET/PATH.
      non_finite: what to do where loss or gradient are not finite: "stop" the run, or "skip" the
        step, which leaves the parameters as they were (the run stops after ten in a row).
      clear_states: begin every segment with the initial recurrent states, in training and in
        evaluation; keys and values are carried as ever (an ablation of the paper).
    """

    num_steps: int = 500_000
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 10_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 3
    bucket: str | None = None
    non_finite: Literal["stop", "skip"] = "stop"
    clear_states: bool = False

    def _validate(self) -> None:
        self._require_positive("num_steps", "log_every", "evaluate_every", "checkpoint_every")
        self._require_positive("keep_checkpoints")
        self._require(self.seed >= 0, f"seed must be at least 0, not {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(_Checked):
    """How many devices there are along each mesh axis; one of them may be -1, the rest of them.

    Attributes:
      data: shards batch rows.
      fsdp: shards batch rows and all large parameters, each of which is gathered when it is needed.
      tensor: shards heads and hidden units.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def _validate(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            self._require(size > 0 or size == -1, f"{name} must be positive or -1, not {size}")
        self._require(
            list(sizes.values()).count(-1) <= 1, f"only one axis can be -1, what is left: {sizes}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig(_Checked):
    """Everything a run depends on, checked together."""

    model: _OneOfThem
    data: DataConfig = DataConfig()
    optimizer: AnyOptimizerConfig = AdafactorConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()

    def _validate(self) -> None:
        segment, model = self.data.segment_length, self.model
        if isinstance(model, ModelConfig):
            self._require(
                segment % model.window == 0,
                f"data.segment_length {segment} is no multiple of model.window {model.window}",
            )
        if isinstance(model, (TransformerConfig, TransformerXLConfig)) and model.segment:
            self._require(
                segment % model.segment == 0,
                f"data.segment_length {segment} is no multiple of model.segment {model.segment}",
            )
        self._require(
            isinstance(model, ModelConfig) or not self.training.clear_states,
            f"training.clear_states: the architecture {model.architecture!r} has no recurrent "
            "states to clear",
        )
        self._require(
            self.data.tokenizer != "bytes" or self.model.vocab_size >= 256,
            f"bytes need model.vocab_size of at least 256, not {self.model.vocab_size}",
        )
