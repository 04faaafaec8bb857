"""Frozen, typed configurations of models; every one is validated when it is built.

Sizes are in the letters of the README: E `model_size`, H `num_heads`, D `head_size`, M `mlp_size`,
W `window`, S `num_states`, V `vocab_size`, L `num_layers`, B `batch_size`, N `segment_length`.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, Literal

from block_recurrent.system.hints import has_type, type_error

Remat = Literal["none", "layer", "dots", "auto"]

# What a value must be, by the field's name in any configuration. None has no limits.
_LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "positive",
        lambda value: value > 0,
        "model_size num_heads head_size mlp_size window num_states vocab_size num_layers segment "
        "hidden_size batch_size segment_length learning_rate decay_steps warmup_steps clip_norm "
        "decay_rate clipping_threshold eps1 eps num_steps log_every evaluate_every "
        "checkpoint_every keep_checkpoints accumulate_steps",
    ),
    ("at least 0", lambda value: value >= 0, "memory seed weight_decay"),
    ("in [0, 1]", lambda value: 0 <= value <= 1, "state_passing"),
    ("in [0, 1)", lambda value: 0 <= value < 1, "dropout attention_dropout momentum beta b1 b2"),
)


class ConfigError(ValueError):
    """A configuration, a gin file or a command line is wrong; the message says what and where."""


class Checked:
    """Base of the configurations: checks the type and the limits of every field."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, value in vars(self).items():
            if not has_type(value, hints[name]):
                raise type_error(f"{type(self).__name__}.{name}", value, hints[name])
        for limit, holds, names in _LIMITS:
            for name in names.split():
                value = getattr(self, name, None)
                self._require(value is None or holds(value), f"{name} must be {limit}, not {value}")
        self._validate()

    def _validate(self) -> None:
        """Raises ValueError if values of the right type do not fit together."""

    def _require(self, holds: bool, sentence: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {sentence}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig(Checked):
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
      attention_dropout: rate for the probabilities of self-attention; `dropout` unless given.
      dtype: dtype of activations; parameters, norms, softmax, gates and states are float32.
      attention: the implementation: "xla" (plain array arithmetic, the reference), "tiled" (for
        CPUs and GPUs), "pallas" (kernels for TPUs and Hopper GPUs, in windows and head sizes that
        suit them; on a CPU only for tests), "cudnn" (NVIDIA's library, for bfloat16 and
        attention_dropout 0), or "auto" (the fastest one that is possible). All compute the same,
        except that dropout in "pallas" drops other probabilities.
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
    attention_dropout: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "xla", "tiled", "pallas", "cudnn"] = "auto"

    def _validate(self) -> None:
        self._require(
            self.positions != "rotary" or self.head_size % 2 == 0,
            f"rotary positions need an even head_size, not {self.head_size}: "
            f"set head_size = {self.head_size + 1}",
        )

    @property
    def attention_rate(self) -> float:
        """The rate of dropout of the probabilities of self-attention."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def uses_dropout(self) -> bool:
        """Whether anything is dropped in training."""
        return max(self.dropout, self.attention_rate) > 0


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
        several windows then equals several segments of Transformer-XL, of one window each.
      scan_layers: run stacked plain layers as one compiled loop, which compiles faster, or unroll
        the loop. Unless given, it is unrolled in models of fewer than 24 layers where that runs
        faster: on a CPU, and with `remat` "none" or "dots".
      remat: what the backward pass computes again: "none", "layer" (everything inside a layer but
        what attention returns and the states; in a loop over layers on a TPU attention, too) or
        "dots" (projections are kept, too). Both also compute every state update again, and so does
        "none" but on a CPU. With "auto" `train` takes the first of "none" (not with "tiled" on a
        GPU), "dots" and "layer" that fits the devices, and the run keeps it; elsewhere "auto" is
        "layer".
      logits_by_window: compute logits, loss and gradients of one window after the other, which
        saves memory and time if the vocabulary is large.
    """

    architecture: Literal["block_recurrent"] = "block_recurrent"
    vocab_size: int
    num_layers: int = 12
    recurrent_layers: tuple[int, ...] = ()
    feedback: bool = False
    detach_windows: bool = False
    scan_layers: bool | None = None
    remat: Remat = "none"
    logits_by_window: bool = False

    def _validate(self) -> None:
        super()._validate()
        for index in self.recurrent_layers:
            self._require(
                -self.num_layers <= index < self.num_layers,
                f"recurrent_layers {self.recurrent_layers}: layer {index} is outside the "
                f"{self.num_layers} layers (allowed: {-self.num_layers} to {self.num_layers - 1})",
            )
        self._require(
            len(set(self.recurrent_indices)) == len(self.recurrent_layers),
            f"recurrent_layers {self.recurrent_layers} names a layer twice: "
            f"set recurrent_layers = {tuple(sorted(set(self.recurrent_indices)))}",
        )
        self._require(
            bool(self.recurrent_layers) or not self.feedback,
            "feedback needs a recurrent layer: set recurrent_layers = (-1,) or feedback = False",
        )
        self._require(
            not (self.recurrent_layers and self.detach_windows),
            "detach_windows is for models without recurrent layers, as Transformer-XL is: "
            "set detach_windows = False or recurrent_layers = ()",
        )

    @property
    def recurrent_indices(self) -> tuple[int, ...]:
        """The recurrent layers as sorted indices from 0."""
        return tuple(sorted(index % self.num_layers for index in self.recurrent_layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig(Checked):
    """Base of the configurations of all baselines.

    Attributes:
      vocab_size: V, token ids are in [0, V).
      num_layers: L, number of layers.
      model_size: E, size of the residual stream.
      dropout: rate, applied only when a call is given a key.
      dtype: dtype of activations; parameters, norms, softmax and an LSTM's state are float32.
      remat: what the backward pass computes again, as `ModelConfig.remat`.
    """

    vocab_size: int
    num_layers: int = 12
    model_size: int = 1024
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"

    @property
    def uses_dropout(self) -> bool:
        """Whether anything is dropped in training."""
        return self.dropout > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeConfig(BaselineConfig):
    """Base for Transformer-XL and the vanilla Transformer: layers with sinusoidal relative
    positions (Dai et al. 2019, section 3.3), which need an even `model_size`.

    Attributes:
      num_heads: H, attention heads.
      head_size: D, size of a head's queries, keys and values.
      mlp_size: M, hidden size of the MLP.
    """

    num_heads: int = 8
    head_size: int = 128
    mlp_size: int = 4096

    def _validate(self) -> None:
        self._require(
            self.model_size % 2 == 0,
            f"sinusoidal positions need an even model_size, not {self.model_size}: "
            f"set model_size = {self.model_size + 1}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(RelativeConfig):
    """Transformer-XL as its own paper has it (Dai et al. 2019, arXiv 1901.02860).

    The Transformer-XL rows of the Block-Recurrent Transformer's Table 1 are another model:
    `ModelConfig` without recurrent layers, in segments of one window.

    Attributes:
      architecture: tells this configuration from the others.
      memory: number of inputs of each layer carried from one segment to the next; may be 0.
      segment: tokens of a segment, into which a longer call is split; None for no split.
      same_length: each token sees exactly the `memory` newest keys, its own among them, instead of
        all keys of the memory and its segment.
      clamp_length: larger distances count as this one; None, or -1 as in the authors' code, for no
        limit.
    """

    architecture: Literal["transformer_xl"] = "transformer_xl"
    memory: int = 512
    segment: int | None = None
    same_length: bool = False
    clamp_length: int | None = None

    def _validate(self) -> None:
        super()._validate()
        self._require(
            self.memory > 0 or not self.same_length,
            "same_length needs a memory of at least 1, not 0: no token would see anything; "
            "set memory = 1 or same_length = False",
        )
        self._require(
            self.clamp_length is None or self.clamp_length == -1 or self.clamp_length > 0,
            f"clamp_length must be positive, or None or -1 for no limit, not {self.clamp_length}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(RelativeConfig):
    """The vanilla Transformer: Transformer-XL's layers on independent segments.

    Attributes:
      architecture: tells this configuration from the others.
      segment: tokens of a segment; a token sees those of its segment up to itself.
    """

    architecture: Literal["transformer"] = "transformer"
    segment: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig(BaselineConfig):
    """A stack of LSTMs with residual connections.

    Attributes:
      architecture: tells this configuration from the others.
      hidden_size: units of a layer's cell and hidden state.
    """

    architecture: Literal["lstm"] = "lstm"
    hidden_size: int = 1248


AnyModelConfig = ModelConfig | TransformerXLConfig | TransformerConfig | LSTMConfig
