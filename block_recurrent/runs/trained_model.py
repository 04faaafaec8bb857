"""The model that a run has trained."""

import sys
from pathlib import Path

from block_recurrent.config import ExperimentConfig
from block_recurrent.model.protocol import Model
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.workdir import CHECKPOINTS
from block_recurrent.training.build import abstract_model

NEWEST, BEST = "newest", "best"  # checkpoints


def restore_model(
    workdir: str | Path, config: ExperimentConfig, which: str | int = NEWEST
) -> tuple[int, Model]:
    """A checkpoint's step, and the model with its parameters.

    Args:
      workdir: of the run.
      config: of the run.
      which: `NEWEST`, the newest whole one, `BEST`, or a step.

    Raises:
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
    """
    checkpoints = Checkpoints(Path(workdir) / CHECKPOINTS, warn=_warn)
    step = checkpoints.best_step() if which == BEST else which
    if step is None:
        raise CheckpointError(f"there is no best checkpoint in {workdir} yet, or it is not known")
    return checkpoints.restore_parameters(
        abstract_model(config.model), None if step == NEWEST else int(step)
    )


def _warn(sentence: str) -> None:
    print(f"WARNING: {sentence}", file=sys.stderr)
