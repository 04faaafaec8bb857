"""Whether a run may begin or go on in a work directory, and how it does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import DataError
from block_recurrent.parallel import processes
from block_recurrent.runs.bucket import Bucket
from block_recurrent.runs.checkpoints import SAVING, Checkpoints
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.launches import record_launch
from block_recurrent.runs.metrics import METRICS, read_metrics
from block_recurrent.runs.workdir import CHECKPOINTS, write_config
from block_recurrent.training.trainer import Trainer

FIRST = f"{SAVING}0"  # what a run leaves that was killed before its first checkpoint was whole
WHAT = {
    "seed": "seed of the order",
    "documents": "number of training documents",
    "corpus": "training documents",
    "tokenizer": "tokenizer",
    "batch_size": "number of lanes",
    "validation": "validation documents",
}


def begin_or_continue(
    trainer: Trainer,
    checkpoints: Checkpoints,
    workdir: Path,
    config: ExperimentConfig,
    progress: Callable[[], Mapping[str, Any]],
) -> bool:
    """Continues from the newest whole checkpoint; a new run begins with one.

    No file is changed before it is known that the run can.

    Args:
      trainer: has a state afterwards.
      checkpoints: of the run.
      workdir: of the run.
      config: of the run; written to `workdir`.
      progress: what a checkpoint holds of the trainer as it is.

    Returns:
      Whether the run continues.

    Raises:
      CheckpointError: there is something, but nothing to continue from.
      DataError: the documents are not those the run began with.
    """
    continues = processes.decided(lambda: bool(checkpoints.steps()))
    if continues:
        state, saved = checkpoints.restore(trainer.abstract_state())
        check_same_data(workdir, saved, progress())
        trainer.restore(state, saved)
    else:
        trainer.begin()
    processes.decided(lambda: _open_workdir(workdir, config, checkpoints, continues))
    if not continues:
        checkpoints.save(trainer.state, progress())
    return continues


def _open_workdir(
    workdir: Path, config: ExperimentConfig, checkpoints: Checkpoints, continues: bool
) -> None:
    """The first changes to the files of a work directory."""
    if continues:
        read_metrics(workdir / METRICS)  # whether they are damaged
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, config)
    record_launch(workdir)
    if continues:
        checkpoints.tidy()


def check_unused(workdir: Path, bucket: Bucket | None = None) -> None:
    """Sees to it that a run without checkpoints is a new one, and not one that lost them.

    Fast, so that it can be called before anything is read or built.

    Raises:
      CheckpointError: there are signs of an earlier run; they are named.
    """
    folder = workdir / CHECKPOINTS
    if Checkpoints(folder, bucket=bucket).steps():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    signs = [str(folder / name) for name in sorted(found - {FIRST})]
    signs += [f"{folder}, a file"] if folder.exists() and not folder.is_dir() else []
    metrics = workdir / METRICS
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
    """Sees to it that a run goes on with the data it began with.

    Args:
      workdir: of the run.
      before: the progress in its checkpoint.
      now: the progress of a run that begins.

    Raises:
      DataError: something is different; all of it is named.
    """
    old, new = _identity(before), _identity(now)
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


def _identity(progress: Mapping[str, Any]) -> dict[str, Any]:
    lanes = progress["lanes"]
    return lanes | {"batch_size": len(lanes["lanes"]), "validation": progress["validation"]}


def _shown(value: Any) -> str:
    """A value, of a fingerprint its beginning."""
    return repr(value) if not isinstance(value, str) or len(value) < 64 else value[:16]
