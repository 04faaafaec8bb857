"""Whether a run may go on in a work directory: the same configuration, data and checkpoints.

Everything that differs is named, and no file is changed.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.config import ConfigError, ExperimentConfig, TransformerXLConfig
from block_recurrent.data import DataError
from block_recurrent.gin_files import load, parameter_values
from block_recurrent.runs.bucket import Bucket
from block_recurrent.runs.checkpoints import SAVING, Checkpoints
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.metrics import METRICS
from block_recurrent.runs.workdir import CHECKPOINTS, CONFIG, LOCK, config_file, holds_run
from block_recurrent.system.files import PARTIAL
from block_recurrent.training.optimizer import make_schedule
from block_recurrent.training.remat import AUTO

REMAT = "model.remat"
# A run may become longer, be logged, evaluated and saved at other steps, and its files may move:
# their content is compared with what the run began with.
MAY_CHANGE = (
    *("training.", "mesh.", "optimizer.decay_steps"),
    *("data.path", "data.download", "data.cache_path", "data.vocab_path", "data.name"),
)
MAY_NOT_CHANGE = (
    *("training.seed", "training.clear_states", "training.state_passing"),
    "training.initial_parameters",
)
# An evaluation does not depend on how batches are cut, where the files are, and what a gradient
# computes again.
NOT_IN_FIGURES = (
    *("data.batch_size", "data.segment_length", "training.accumulate_steps", "mesh."),
    *("data.path", "data.download", "data.cache_path", "data.vocab_path", REMAT),
)
# Left by a run that was killed before its first checkpoint was complete.
FIRST = f"0{SAVING}"
WHAT = {
    "seed": "seed of the order",
    "documents": "number of training documents",
    "corpus": "training documents",
    "tokenizer": "tokenizer",
    "batch_size": "number of lanes",
    "validation": "validation documents",
}


def check_claim(workdir: Path, config: ExperimentConfig) -> None:
    """Checks that a directory is new, or holds a run with this configuration.

    Raises:
      ConfigError: it holds a run with another configuration, or something else.
    """
    path, found = workdir / CONFIG, []
    if path.exists():
        _check_same(path, config, str(workdir), "--workdir")
    elif workdir.is_dir():
        found = sorted({path.name for path in workdir.iterdir()} - {LOCK, CONFIG + PARTIAL})
    elif workdir.exists():
        found = ["it is a file"]
    if found:
        raise ConfigError(
            f"{workdir} holds no run, for there is no {CONFIG} in it, but {', '.join(found[:4])}; "
            "choose another --workdir"
        )


def check_bucket(bucket: Bucket, config: ExperimentConfig) -> None:
    """Checks that a bucket is new, or holds the checkpoints of a run with this configuration.

    Raises:
      ConfigError: it holds those of a run with another configuration.
      BucketError: it cannot be read.
    """
    content = bucket.read(CONFIG)
    if content is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CONFIG
            path.write_bytes(content)
            _check_same(path, config, bucket.url, "training.bucket")


def _check_same(path: Path, config: ExperimentConfig, where: str, other: str) -> None:
    may_change = (*MAY_CHANGE, REMAT) if config.model.remat == AUTO else MAY_CHANGE
    found = differences(_read(path), config, may_change, MAY_NOT_CHANGE)
    if found:
        listed = "\n  ".join(found)
        raise ConfigError(
            f"{where} holds a run with another configuration; choose another {other} or "
            f"undo the change:\n  {listed}"
        )


def _read(path: Path) -> ExperimentConfig:
    try:
        return load([path])
    except ConfigError as error:
        raise ConfigError(
            f"{path} is damaged, so it is not known what the run there began with: restore the "
            f"file, or choose another --workdir ({error})"
        ) from error


def remat_of(workdir: Path) -> str:
    """The `model.remat` of a run, "auto" if none began in the directory.

    Raises:
      ConfigError: its configuration is damaged.
    """
    return _read(workdir / CONFIG).model.remat if holds_run(workdir) else AUTO


def check_length(workdir: Path, config: ExperimentConfig, step: int) -> str:
    """Checks that a run which goes on has not taken more steps already than it is to take.

    Args:
      workdir: the run's directory, with the configuration that it had until now.
      config: the configuration that it goes on with.
      step: the number of steps taken.

    Returns:
      A line for people if the next step's learning rate is another one than it was, else "".

    Raises:
      ConfigError: it has; no file was changed.
    """
    if step > config.training.num_steps:
        raise ConfigError(
            f"the run in {workdir} has taken {step:,} steps already, more than training.num_steps "
            f"= {config.training.num_steps:,}: set training.num_steps = {step}, or choose another "
            "--workdir"
        )
    before = _read(workdir / CONFIG)
    old, new = (
        float(np.asarray(make_schedule(each.optimizer, each.training.num_steps)(step)))
        for each in (before, config)
    )
    if math.isclose(old, new, rel_tol=1e-6):
        return ""
    length = before.optimizer.decay_steps or before.training.num_steps
    return (
        f"the learning rate of step {step + 1:,} is {new:.3g}; before the length of its schedule "
        f"changed, it was {old:.3g}. --gin.optimizer.decay_steps={length} keeps it"
    )


def other_settings(workdir: Path, config: ExperimentConfig) -> list[str]:
    """The differences from a run's configuration that may change the figures of an evaluation.

    Files may have moved, as long as the corpus keeps its name. The length of segments matters where
    segments begin with cleared states, and where tokens see a memory and their segment.

    Raises:
      ConfigError: the run's configuration cannot be read.
    """
    run, other = (
        dataclasses.replace(each, data=dataclasses.replace(each.data, name=each.data.corpus_name))
        for each in (_read(config_file(workdir)), config)
    )
    cut = config.training.clear_states or isinstance(config.model, TransformerXLConfig)
    return differences(run, other, NOT_IN_FIGURES, ("data.segment_length",) if cut else ())


def differences(
    old: ExperimentConfig,
    new: ExperimentConfig,
    may_change: tuple[str, ...],
    may_not_change: tuple[str, ...] = (),
) -> list[str]:
    """A phrase for each parameter of both that differs; names are given by how they begin.

    If only one of them has a parameter, `model.architecture` differs as well.
    """
    before, after = parameter_values(old), parameter_values(new)
    return [
        f"{name} = {value!r}, now {after[name]!r}"
        for name, value in before.items()
        if after.get(name, value) != value
        and (name.startswith(may_not_change) or not name.startswith(may_change))
    ]


def check_unused(workdir: Path, bucket: Bucket | None = None) -> None:
    """Checks that a run without checkpoints is a new one, and has not lost them.

    Fast, so that it can be called before anything is read or built.

    Raises:
      CheckpointError: there are signs of an earlier run; they are named.
    """
    folder, metrics = workdir / CHECKPOINTS, workdir / METRICS
    if Checkpoints(folder, bucket=bucket).steps():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    signs = [str(folder / name) for name in sorted(found - {FIRST})]
    if folder.is_file():
        signs.append(f"{folder}, a file")
    if FIRST not in found and metrics.exists() and metrics.stat().st_size:
        signs.append(str(metrics))
    if signs:
        more = f" and {len(signs) - 4} more" if len(signs) > 4 else ""
        raise CheckpointError(
            f"{workdir} has no checkpoint to continue from, but it is not new: there is "
            f"{', '.join(signs[:4])}{more}. Nothing was changed. To start afresh, choose another "
            "work directory or remove this one."
        )


def check_same_data(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a run goes on with the data it began with.

    Args:
      workdir: the run's directory.
      before: the progress in its checkpoint.
      now: the progress of a run that begins.

    Raises:
      DataError: something differs; all of it is named.
    """
    old, new = _data_of(before), _data_of(now)
    differences = [
        f"{what}: {_shown(old[name])}, now {_shown(new[name])}"
        for name, what in WHAT.items()
        if old[name] != new[name]
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise DataError(
            f"the run in {workdir} began with other data. Nothing was changed. Give it what it "
            f"began with, or choose another work directory:\n  {listed}"
        )


def _data_of(progress: Mapping[str, Any]) -> dict[str, Any]:
    lanes = progress["lanes"]
    return lanes | {"batch_size": len(lanes["lanes"]), "validation": progress["validation"]}


def _shown(value: Any) -> str:
    """A value; of a fingerprint only the beginning."""
    return repr(value) if not isinstance(value, str) or len(value) < 64 else value[:16]
