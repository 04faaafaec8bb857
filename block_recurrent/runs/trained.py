"""A trained model, read from the work directory of its run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from block_recurrent import gin_files
from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Tokenizer, make_tokenizer
from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import with_shardings
from block_recurrent.runs.bucket import bucket_of
from block_recurrent.runs.checkpoint_folder import read_model
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.workdir import CHECKPOINTS, config_file
from block_recurrent.training.build import abstract_model
from block_recurrent.training.step import model_sharding

NEWEST, BEST = "newest", "best"  # checkpoints


class TrainedModel(NamedTuple):
    """A trained model and what it was trained with.

    Attributes:
      model: a language model with the trained parameters.
      config: the run's configuration.
      tokenizer: turns text into the model's tokens and back.
      step: training step of the checkpoint.
      progress: the JSON values that the checkpoint holds beside the arrays.
    """

    model: Model
    config: ExperimentConfig
    tokenizer: Tokenizer
    step: int
    progress: Mapping[str, Any] = {}


def load(
    workdir: str | Path,
    step: int | str | None = None,
    *,
    config: ExperimentConfig | None = None,
    mesh: Mesh | None = None,
) -> TrainedModel:
    """Reads a trained model, its configuration and its tokenizer from a work directory.

    Every file of the checkpoint is checked first. If the newest checkpoint is damaged, the next
    older one is used, with a warning.

    Args:
      workdir: the directory that the run was trained in.
      step: of the checkpoint: a number, "newest" (None is the same), or "best", which is the one
        with the lowest validation loss.
      config: used in place of the run's configuration, for example with other data.
      mesh: devices to shard the parameters over; the first device unless given.

    Raises:
      ConfigError: `workdir` holds no run, or the parameters cannot be sharded over the mesh.
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
      DataError: the tokenizer's vocabulary cannot be read.
    """
    config = config or gin_files.load([config_file(workdir)])
    tokenizer = make_tokenizer(config.data)
    checkpoints = Checkpoints(Path(workdir) / CHECKPOINTS, warn=_warn, bucket=bucket_of(config))
    if step == BEST:
        step = processes.decided(checkpoints.best_step)
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {workdir} has a validation loss, so the best one is not known"
            )
    like = abstract_model(config.model)
    if mesh is not None:
        like = with_shardings(like, model_sharding(mesh, like))
    number = None if step in (None, NEWEST) else int(step)
    step, (model, progress) = checkpoints.read(lambda folder: read_model(folder, like), number)
    return TrainedModel(model, config, tokenizer, step, progress)


def _warn(sentence: str) -> None:
    if processes.is_primary():
        logging.getLogger(__name__).warning("WARNING: %s", sentence)
