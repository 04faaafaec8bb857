"""Frozen, typed configurations; every one is validated when it is built.

Those of models are in `model_config`, and are here as well.
"""

import dataclasses
import re
import typing
from pathlib import PurePath
from typing import Any, Literal

from block_recurrent.model_config import AnyModelConfig as AnyModelConfig
from block_recurrent.model_config import BaselineConfig as BaselineConfig
from block_recurrent.model_config import Checked as Checked
from block_recurrent.model_config import ConfigError as ConfigError
from block_recurrent.model_config import LayerConfig as LayerConfig
from block_recurrent.model_config import LSTMConfig as LSTMConfig
from block_recurrent.model_config import ModelConfig as ModelConfig
from block_recurrent.model_config import RelativeConfig as RelativeConfig
from block_recurrent.model_config import TransformerConfig as TransformerConfig
from block_recurrent.model_config import TransformerXLConfig as TransformerXLConfig

WITHOUT_PATH = ("stdlib", "site_packages")  # sources
Download = Literal["never", "cache", "stream"]

if typing.TYPE_CHECKING:
    _OneOfThem = Any  # code that reads an experiment's model mostly knows its kind
else:
    _OneOfThem = AnyModelConfig


# What only some sources read.
_DATA_OPTIONS = {
    "split_bytes document_start": ("jsonl", "text"),
    "split_by": ("jsonl", "text", "huggingface"),
    "id_column text_column title_column": ("jsonl", "text", "huggingface", "tfds"),
    "download": ("huggingface",),
    "cache_path": ("tfds",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Documents, and how batch rows and segments are cut from them.

    Attributes:
      source: "stdlib" or "site_packages" (the running interpreter's Python source code), "text" or
        "jsonl" (a file, or a directory of files: text, JSON, CSV, Parquet, Arrow), "huggingface"
        (a folder, or a name on its hub, that the package `datasets` reads) or "tfds" (a directory
        that `block-recurrent prepare-data` or tensorflow-datasets wrote).
      path: file or directory of "jsonl", "text" and "tfds"; of "huggingface" a folder, a name, or
        name and configuration with a colon between.
      download: what "huggingface" may download of a name: "never" reads its cache alone, "cache"
        downloads the data set there, "stream" downloads rows as they are read.
      name: name of the corpus, by which tables find its column; the last part of `path`, or the
        source, unless given.
      tokenizer: "bytes", or the kind of the vocabulary in `vocab_path`: "sentencepiece",
        "huggingface" (a tokenizer.json) or "tiktoken".
      vocab_path: the vocabulary's file.
      vocab_sha256: hexadecimal SHA-256 of that file, which identifies it.
      vocab_pattern: how text is cut before "tiktoken" merges bytes: "gpt2", "cl100k_base",
        "o200k_base", or the regular expression of another encoding.
      end_of_document: whether the token that begins documents is also the last target of each, so
        that the model learns where texts end, and generation ends there.
      cache_path: folder for the tokens of a "tfds" corpus; `token_cache` in `path` unless given.
      batch_size: B, number of batch rows.
      segment_length: N, tokens of a row per step, a multiple of the model's window, or of its
        `segment`.
      split_by: "names", of files and folders, decide the split of a document where they tell it,
        otherwise a hash of its id does; "hash" ignores the names.
      split_bytes: shares of train, validation and test, such as (90, 5, 5): every text file is cut
        there, as benchmarks of one file are.
      document_start: a regular expression; a line of a text file that matches begins a document.
      id_column: what the id of a record is called, or several columns joined by commas; published
        layouts are known.
      text_column: what its text is called.
      title_column: what its title is called.
      validation_percent: share of documents held out, if the source has no validation split.
      seed: order of the training documents.
    """

    source: Literal["stdlib", "site_packages", "jsonl", "text", "huggingface", "tfds"] = "stdlib"
    path: str | None = None
    download: Download = "never"
    name: str | None = None
    tokenizer: Literal["bytes", "sentencepiece", "huggingface", "tiktoken"] = "bytes"
    vocab_path: str | None = None
    vocab_sha256: str | None = None
    vocab_pattern: str | None = None
    end_of_document: bool = False
    cache_path: str | None = None
    batch_size: int = 32
    segment_length: int = 4096
    split_by: Literal["names", "hash"] = "names"
    split_bytes: tuple[int, ...] | None = None
    document_start: str | None = None
    id_column: str | None = None
    text_column: str | None = None
    title_column: str | None = None
    validation_percent: int = 10
    seed: int = 0

    def _validate(self) -> None:
        self._require(
            0 < self.validation_percent < 100,
            f"validation_percent must be between 1 and 99, not {self.validation_percent}",
        )
        needs_path = self.source not in WITHOUT_PATH
        has_file = self.tokenizer != "bytes"
        for name, owner, needed in (
            ("path", "source", needs_path),
            ("vocab_path", "tokenizer", has_file),
            ("vocab_sha256", "tokenizer", has_file),
            ("vocab_pattern", "tokenizer", self.tokenizer == "tiktoken"),
        ):
            given, of = getattr(self, name), f"{owner} {getattr(self, owner)!r}"
            self._require(not needed or given is not None, f"{of} needs a {name}; set data.{name}")
            self._require(needed or given is None, f"{of} takes no {name}; set data.{name} = None")
        for names, sources in _DATA_OPTIONS.items():
            for name in names.split():
                default = getattr(DataConfig, name)
                self._require(
                    getattr(self, name) == default or self.source in sources,
                    f"{name} belongs to source {' and '.join(map(repr, sources))}, not to "
                    f"{self.source!r}; set data.{name} = {default!r}",
                )
        self._require(
            bool(re.fullmatch("[0-9a-f]{64}", self.vocab_sha256 or "0" * 64)),
            f"vocab_sha256 must be 64 hexadecimal digits, not {self.vocab_sha256!r}",
        )

    @property
    def corpus_name(self) -> str:
        """The name of the corpus in tables."""
        return self.name or PurePath(self.path or "").name or self.source


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """Base of the configurations of all optimizers: a learning rate schedule and clipping.

    Attributes:
      schedule: "rsqrt", `learning_rate / sqrt(max(step, warmup_steps))`, or "cosine", from
        `learning_rate` to `final_learning_rate` over `decay_steps`; both after a linear ramp.
      learning_rate: factor of "rsqrt", peak of "cosine".
      final_learning_rate: end of "cosine".
      decay_steps: length of "cosine", ramp included; `training.num_steps` unless given, so that a
        run that is made longer gets another learning rate.
      warmup_steps: length of the linear ramp.
      clip_norm: gradients are scaled down to this global norm; None leaves them alone.
    """

    schedule: Literal["rsqrt", "cosine"] = "rsqrt"
    learning_rate: float = 1.0
    final_learning_rate: float = 0.0
    decay_steps: int | None = None
    warmup_steps: int = 1000
    clip_norm: float | None = None

    def _validate(self) -> None:
        for name, unused in (("final_learning_rate", 0.0), ("decay_steps", None)):
            self._require(
                self.schedule == "cosine" or not getattr(self, name),
                f"{name} belongs to the cosine schedule: set schedule = 'cosine' or "
                f"{name} = {unused}",
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon (Jordan et al. 2024) for kernels, and Adam for all other parameters.

    A kernel's averaged gradient is orthogonalized and scaled to the root mean square 0.2, about
    that of an update of AdamW, whose learning rates serve for both (Liu et al. 2025,
    arXiv 2502.16982). Both average in Nesterov's way.

    Attributes:
      name: tells this configuration from those of the other optimizers.
      beta: decay of the average of a kernel's gradients.
      b1: decay of the first moment of the other parameters.
      b2: decay of their second moment.
      eps: added to the root of the second moment, and to a kernel's norm.
      weight_decay: decoupled decay of kernels, times the learning rate.
    """

    name: Literal["muon"] = "muon"
    beta: float = 0.95
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0


AnyOptimizerConfig = AdafactorConfig | AdamWConfig | MuonConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """Length and rhythm of a run, all in steps.

    Attributes:
      num_steps: steps of the whole run.
      seed: initial parameters and dropout.
      log_every: steps between lines of metrics.
      evaluate_every: steps between evaluations; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: number of newest checkpoints that are kept.
      bucket: where to copy the checkpoints, gs://BUCKET/PATH or s3://BUCKET/PATH.
      trackers: where metrics are shown besides the metrics file: "tensorboard", if it is installed,
        and "wandb" (Weights & Biases).
      non_finite: what to do if loss or gradient are not finite: "stop" the run, or "skip" the
        step, which leaves the parameters as they were (the run stops after ten in a row).
      clear_states: begin every segment with the initial recurrent states, in training and in
        evaluation; keys and values are still carried (an ablation of the paper).
      state_passing: share of documents that begin with the recurrent states that the document
        before them in their batch row left, in training alone; against states that drift in long
        documents (Buitrago and Gu 2025, arXiv 2507.02782). No row of the paper has it.
      accumulate_steps: number of microbatches, equal parts of the batch rows, that a step computes
        one after the other. More of them need less memory. The step is that of the whole batch, to
        rounding, but with dropout it has other noise.
      initial_parameters: a run's work directory, or one of its checkpoints
        (WORKDIR/checkpoints/STEP), with whose parameters a new run begins; unless given, they are
        random.
      profile_steps: steps to profile, such as "10:12" for steps 10, 11 and 12, counted from 1.
    """

    num_steps: int = 500_000
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 10_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 3
    bucket: str | None = None
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    non_finite: Literal["stop", "skip"] = "stop"
    clear_states: bool = False
    state_passing: float = 0.0
    accumulate_steps: int = 1
    initial_parameters: str | None = None
    profile_steps: str | None = None

    def _validate(self) -> None:
        self._require(
            not (self.clear_states and self.state_passing),
            "clear_states leaves no states to pass on; set state_passing = 0.0",
        )
        steps = self.profile_steps
        valid = steps is None or (
            bool(re.fullmatch("[0-9]+:[0-9]+", steps))
            and 0 < self.profiled.start < self.profiled.stop <= self.num_steps + 1
        )
        self._require(
            valid,
            f"profile_steps must be FIRST:LAST, from 1 to the {self.num_steps} steps of the run, "
            f"not {steps!r}; set profile_steps = '1:{min(10, self.num_steps)}'",
        )

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`."""
        first, last = map(int, (self.profile_steps or "1:0").split(":"))
        return range(first, last + 1)

    def evaluations_after(self, step: int) -> int:
        """The number of evaluations that are still to come when a run has taken `step` steps."""
        last, taken = self.num_steps - 1, max(step - 1, 0)
        return last // self.evaluate_every - taken // self.evaluate_every + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """The number of devices along each mesh axis; one may be -1, for all that are left.

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
        others = [name for name, size in sizes.items() if size == -1][1:]
        advice = " and ".join(f"{name} = 1" for name in others)
        self._require(not others, f"only one axis can be -1 (all left): {sizes}; set {advice}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Checked):
    """Everything a run depends on, checked together."""

    model: _OneOfThem
    data: DataConfig = DataConfig()
    optimizer: AnyOptimizerConfig = AdafactorConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()

    def _validate(self) -> None:
        segment, model = self.data.segment_length, self.model
        unit = "window" if isinstance(model, ModelConfig) else "segment"
        size = getattr(model, unit, None) or 1
        self._require(
            segment % size == 0,
            f"data.segment_length {segment} is no multiple of model.{unit} {size}; "
            f"set data.segment_length = {-(-segment // size) * size}",
        )
        rows, parts = self.data.batch_size, self.training.accumulate_steps
        self._require(
            rows % parts == 0,
            f"data.batch_size {rows} is no multiple of training.accumulate_steps {parts}; "
            f"set data.batch_size = {-(-rows // parts) * parts}",
        )
        for name in ("clear_states", "state_passing"):
            self._require(
                isinstance(model, ModelConfig) or not getattr(self.training, name),
                f"training.{name}: the architecture {model.architecture!r} has no recurrent "
                f"states; set training.{name} = {getattr(TrainingConfig, name)}",
            )
        self._require(
            self.data.tokenizer != "bytes" or self.model.vocab_size >= 256,
            f"bytes need model.vocab_size of at least 256, not {self.model.vocab_size}",
        )

    @property
    def microbatch_size(self) -> int:
        """The number of batch rows that a training step computes at a time, on all devices."""
        return self.data.batch_size // self.training.accumulate_steps
