"""Checkpoints: parameters, optimizer, carried state and data position, with Orbax."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from block_recurrent.model import LanguageModel
from block_recurrent.parameters import named_parameters, replace_parameters
from block_recurrent.training.step import TrainState


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit the model; the message says how."""


class Checkpoints:
    """The checkpoints of one run, in `directory`/<step>.

    Each has three parts: `parameters` (by path, enough for evaluation and generation), `training`
    (optimizer, carried state, step) and `progress` (JSON: the data's position and the like).

    Args:
      directory: created when the first checkpoint is saved.
      keep: how many of the newest checkpoints stay.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            os.path.abspath(directory),
            options=options,
            item_handlers={
                "parameters": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes a checkpoint and removes the oldest; returns when it is on disk."""
        step = int(state.step)
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(named_parameters(state.model)),
                training=ocp.args.StandardSave(_training_part(state)),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, in the structure of `state`: a state, and `progress` as saved.

        Raises:
          CheckpointError: there is none, or it is of another model.
        """
        restored = self._manager.restore(
            self._step_that_fits(state.model),
            args=ocp.args.Composite(
                parameters=ocp.args.StandardRestore(_abstract(named_parameters(state.model))),
                training=ocp.args.StandardRestore(_abstract(_training_part(state))),
                progress=ocp.args.JsonRestore(),
            ),
        )
        training = restored["training"]
        carried = state.carried._replace(**training["carried"])
        model = replace_parameters(state.model, restored["parameters"])
        state = TrainState(model, training["optimizer"], carried, training["step"])
        return state, restored["progress"]

    def restore_parameters(self, model: LanguageModel) -> LanguageModel:
        """`model` with the parameters of the newest checkpoint.

        Raises:
          CheckpointError: there is none, or it is of another model.
        """
        abstract = _abstract(named_parameters(model))
        restored = self._manager.restore(
            self._step_that_fits(model),
            args=ocp.args.Composite(parameters=ocp.args.StandardRestore(abstract)),
        )
        return replace_parameters(model, restored["parameters"])

    def _step_that_fits(self, model: LanguageModel) -> int:
        """The newest step, once its parameters are seen to be those of `model`."""
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self._manager.directory}")
        saved = self._manager.item_metadata(step)["parameters"].tree
        wanted = named_parameters(model)
        problems = [
            f"{name}: {_shape(saved, name)} in the checkpoint, {_shape(wanted, name)} in the model"
            for name in sorted({*saved, *wanted})
            if _shape(saved, name) != _shape(wanted, name)
        ]
        if problems:
            where = f"{self._manager.directory}/{step} is of another model"
            raise CheckpointError("\n  ".join([f"{where}:", *problems]))
        return step

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def _training_part(state: TrainState) -> dict[str, Any]:
    # Orbax refuses arrays without elements: the recurrent state of a model that has none.
    carried = {name: part for name, part in state.carried._asdict().items() if _has_elements(part)}
    return {"optimizer": state.optimizer, "carried": carried, "step": state.step}


def _shape(named: Mapping[str, Any], name: str) -> str:
    return f"shape {tuple(named[name].shape)}" if name in named else "nothing"


def _has_elements(part: Any) -> bool:
    return all(array.size for array in jax.tree.leaves(part))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
