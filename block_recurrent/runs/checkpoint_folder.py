"""One checkpoint on disk: a folder that Orbax writes and reads, and a seal over its files.

parameters/   the model's parameters by path, such as "stack.parts.0.layers.keys.kernel"
training/     the optimizer's state, the carried state and the step
progress/     JSON: the position in the data and the like
seal.json     a checksum of every file
loss.json     the validation loss, once it is known

Orbax stores arrays independently of the devices that they were on.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.system.files import reason
from block_recurrent.training.step import TrainState

PARAMETERS, TRAINING, PROGRESS = "parameters", "training", "progress"
OS_ERROR = re.compile(r"os_error_code='(\d+)'")
DATA_FILE_BYTES = 32 << 20  # each file is copied to a bucket as one object


def make_context() -> ocp.Context:
    """Orbax's settings for reading and writing; a new object, which may be changed.

    Orbax writes thousands of lines about a full disk to absl's log. Every failure is also raised,
    so that log is silenced.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    context = ocp.Context()
    context.array.saving.use_compression = False  # it makes a restore three times as long
    context.array.saving.ocdbt_target_data_file_size = DATA_FILE_BYTES
    context.checkpointables.registry = ocp.handlers.local_registry().add(
        ocp.handlers.JsonHandler, checkpointable_name=PROGRESS
    )
    return context


@contextlib.contextmanager
def late_writes_ignored() -> Iterator[None]:
    """Within the context, Python prints no traceback for each array that a failed save still wrote.

    Orbax closes its event loop at the first failure, while other arrays are being written.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def begin_save(
    folder: Path, items: Mapping[str, Any], complete: Callable[[], None], seconds: int
) -> Callable[[], None]:
    """Copies arrays from the devices and begins to write a checkpoint.

    Args:
      folder: the checkpoint; its name is its step, and its parent exists.
      items: what to save.
      complete: called when all files are written, before the folder gets its name.
      seconds: time limit.

    Returns:
      A function that waits for the end. It raises any error of the save.
    """
    context = make_context()
    context.async_options.timeout_secs = seconds
    context.async_options.post_finalization_callback = complete
    # A new one for each save: it would not notice that a checkpoint was set aside or removed.
    orbax = ocp.training.Checkpointer(str(folder.parent), context=context)
    response = orbax.save_checkpointables_async(int(folder.name), dict(items), force=True)
    assert response is not None  # because of `force`

    def finish() -> None:
        try:
            response.result()
        except ValueError as error:
            code = OS_ERROR.search(str(error))  # in a long message, and nowhere else
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        finally:
            with contextlib.suppress(Exception):  # the same error again
                orbax.close()

    return finish


def arrays_of(state: TrainState) -> dict[str, dict[str, Any]]:
    """The arrays of a state by checkpointable and name.

    Arrays without elements, which Orbax refuses, are left out.
    """
    arrays = {PARAMETERS: named_parameters(state.model), TRAINING: _training(state)[0]}
    return {name: _filled(each) for name, each in arrays.items()}


def _training(state: TrainState) -> tuple[dict[str, Any], Any]:
    """All arrays of a state besides the parameters, by name, and their structure."""
    rest = {"optimizer": state.optimizer, "carried": state.carried, "step": state.step}
    leaves, structure = jax.tree.flatten_with_path(rest)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, structure


def _filled(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if array.size}


def read_state(folder: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state in a checkpoint, in the structure and sharding of `like`, and the progress.

    The seal must have been checked before, here and in the other functions.

    Args:
      folder: the checkpoint.
      like: arrays or `jax.ShapeDtypeStruct`s. Those without a sharding are restored to the first
        device.

    Raises:
      CheckpointError: the checkpoint belongs to another model, or cannot be read at present.
    """
    training, structure = _training(like)
    found = _read(folder, {PARAMETERS: named_parameters(like.model), TRAINING: training})
    rest = jax.tree.unflatten(structure, [found[TRAINING][name] for name in training])
    return TrainState(replace_parameters(like.model, found[PARAMETERS]), **rest), found[PROGRESS]


def read_model(folder: Path, like: Model) -> tuple[Model, dict[str, Any]]:
    """`like` with the parameters in a checkpoint, and the progress.

    The other arrays of the checkpoint are not read. Arguments and errors are those of `read_state`.
    """
    found = _read(folder, {PARAMETERS: named_parameters(like)})
    return replace_parameters(like, found[PARAMETERS]), found[PROGRESS]


def read_arrays(folder: Path, name: str = PARAMETERS) -> dict[str, np.ndarray]:
    """The arrays of `PARAMETERS`, by path, or of `TRAINING`; errors are those of `read_state`."""
    with _reading(folder):
        written = ocp.checkpointables_metadata(str(folder)).metadata[name]
        targets = {path: np.empty(array.shape, array.dtype) for path, array in written.items()}
        return ocp.load_checkpointables(str(folder), {name: targets})[name]


def _read(folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Checkpointables with the arrays `wanted`, once they are known to fit, and the progress."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first), wanted
    )
    filled = {name: _filled(arrays) for name, arrays in targets.items()}
    with _reading(folder):
        metadata = ocp.checkpointables_metadata(str(folder)).metadata
        for name, arrays in filled.items():
            _check_fit(folder / name, metadata[name], arrays)
        found = ocp.load_checkpointables(str(folder), {**filled, PROGRESS: None})
    for name, arrays in targets.items():
        for path in arrays.keys() - filled[name].keys():
            empty = arrays[path]
            found[name][path] = jnp.zeros(empty.shape, empty.dtype, device=empty.sharding)
    return found


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Orbax with our settings; its errors become one that names the checkpoint."""
    try:
        with make_context():
            yield
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read ({reason(error)})") from error


def _check_fit(path: Path, written: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Compares shapes and dtypes. Orbax would convert another dtype without a word."""
    saved, wanted = (
        {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
        for arrays in (written, like)
    )
    problems = [
        f"{name}: {saved.get(name, 'nothing')} in the checkpoint, "
        f"{wanted.get(name, 'nothing')} in the model"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        raise CheckpointError("\n  ".join([f"{path} belongs to another model:", *problems]))
