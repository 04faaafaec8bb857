"""The model that a run has trained."""

import sys
from pathlib import Path

from jax.sharding import Mesh

from block_recurrent.config import ExperimentConfig
from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import with_places
from block_recurrent.runs.bucket import bucket_of
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.workdir import CHECKPOINTS
from block_recurrent.training.build import abstract_model
from block_recurrent.training.step import model_sharding

NEWEST, BEST = "newest", "best"  # checkpoints


def restore_model(
    workdir: str | Path,
    config: ExperimentConfig,
    which: str | int = NEWEST,
    mesh: Mesh | None = None,
) -> tuple[int, Model]:
    """A checkpoint's step, and the model with its parameters.

    Args:
      workdir: of the run.
      config: of the run.
      which: `NEWEST`, the newest whole one, `BEST`, or a step.
      mesh: devices that share the parameters out; one device unless given.

    Raises:
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
      ConfigError: the mesh cannot share the parameters out evenly.
    """
    checkpoints = Checkpoints(Path(workdir) / CHECKPOINTS, warn=_warn, bucket=bucket_of(config))
    step = processes.decided(checkpoints.best_step) if which == BEST else which
    if step is None:
        raise CheckpointError(f"there is no best checkpoint in {workdir} yet, or it is not known")
    model = abstract_model(config.model)
    if mesh is not None:
        model = with_places(model, model_sharding(mesh, model))
    return checkpoints.restore_parameters(model, None if step == NEWEST else int(step))


def _warn(sentence: str) -> None:
    if processes.is_primary():
        print(f"WARNING: {sentence}", file=sys.stderr)
