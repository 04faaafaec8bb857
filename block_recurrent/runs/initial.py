"""The parameters of another run, with which a new run begins (`training.initial_parameters`)."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from block_recurrent import gin_files
from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.model.protocol import Model
from block_recurrent.runs.identity import differences
from block_recurrent.runs.seal import fingerprint
from block_recurrent.runs.trained import load
from block_recurrent.runs.workdir import CHECKPOINTS, config_file

# The same parameters mean the same whatever of this differs.
MAY_DIFFER = (
    *("data.", "optimizer.", "training.", "mesh."),
    *("model.dropout", "model.dtype", "model.attention", "model.detach_windows"),
    *("model.scan_layers", "model.remat", "model.logits_by_window"),
)
MAY_NOT_DIFFER = ("data.tokenizer", "data.vocab_sha256")


class Source(NamedTuple):
    """Where parameters come from.

    Attributes:
      workdir: of the run that trained them.
      step: of the checkpoint; None for the newest.
      config: the configuration of that run.
    """

    workdir: Path
    step: int | None
    config: ExperimentConfig


def find_source(config: ExperimentConfig) -> Source | None:
    """The source of a run's initial parameters, None if they are random.

    Raises:
      ConfigError: there is no such run, or its model or tokenizer is another one.
    """
    name = config.training.initial_parameters
    if name is None:
        return None
    path, step = Path(name), None
    if path.parent.name == CHECKPOINTS and path.name.isdecimal():
        path, step = path.parents[1], int(path.name)
    try:
        source = gin_files.load([config_file(path)])
    except ConfigError as error:
        raise ConfigError(f"training.initial_parameters = {name!r}: {error}") from error
    found = differences(source, config, MAY_DIFFER, MAY_NOT_DIFFER)
    if found:
        listed = "\n  ".join(found)
        raise ConfigError(
            f"training.initial_parameters = {name!r} are those of another model; choose another "
            f"run or undo the change:\n  {listed}"
        )
    return Source(path, step, source)


def read_source(
    source: Source, config: ExperimentConfig, mesh: Mesh
) -> tuple[Model, dict[str, Any]]:
    """The model of a run that begins with the parameters of a source.

    Args:
      source: of `find_source`.
      config: of the run that begins.
      mesh: the devices to shard the parameters over.

    Returns:
      The model; and, as JSON values, the step and the fingerprint of the checkpoint.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    # The bucket is that of the source.
    config = dataclasses.replace(config, training=source.config.training)
    trained = load(source.workdir, source.step, config=config, mesh=mesh)
    folder = source.workdir / CHECKPOINTS / str(trained.step)
    return trained.model, {"step": trained.step, "fingerprint": fingerprint(folder)}
