"""One checkpoint on disk: a folder that Orbax writes and reads, and a seal over its files.

parameters/   the model's parameters by path, such as "stack.parts.0.layers.keys.kernel"
training/     the optimizer's state, the carried state and the step
progress/     JSON: the position in the data and the like
seal.json     a digest of every file
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
from block_recurrent.runs.errors import CheckpointError, Damaged
from block_recurrent.runs.seal import LOSS
from block_recurrent.system.digests import seal, unseal
from block_recurrent.system.files import reason, write_whole
from block_recurrent.training.step import TrainState

PARAMETERS, TRAINING, PROGRESS = "parameters", "training", "progress"
OS_ERROR = re.compile(r"os_error_code='(\d+)'")
DATA_FILE_BYTES = 256 << 20  # more files, each of which fits into memory when it is copied


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
    directory: Path,
    step: int,
    items: Mapping[str, Any],
    *,
    complete: Callable[[], None],
    policy: Any,
    seconds: int,
) -> Callable[[], None]:
    """Copies arrays from the devices and begins to write a checkpoint.

    Orbax looks at the directory anew for each save: it would not notice that a checkpoint was set
    aside or that a save has failed, and would then never remove any.

    Args:
      directory: the folder of all checkpoints.
      step: the checkpoint's step.
      items: what to save.
      complete: called when all files are written, before the folder gets its name.
      policy: says which checkpoints stay, as Orbax asks it.
      seconds: time limit.

    Returns:
      A function that waits for the end. It raises any error of the save.
    """
    context = make_context()
    context.async_options.timeout_secs = seconds
    context.async_options.post_finalization_callback = complete
    orbax = ocp.training.Checkpointer(str(directory), context=context, preservation_policy=policy)
    response = orbax.save_checkpointables_async(step, dict(items), force=True)
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
    return {PARAMETERS: _filled(named_parameters(state.model)), TRAINING: _filled(_training(state))}


def _training(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(_rest_of(state))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _rest_of(state: TrainState) -> dict[str, Any]:
    return {"optimizer": state.optimizer, "carried": state.carried, "step": state.step}


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
    parameters, training = named_parameters(like.model), _training(like)
    found = _read(folder, {PARAMETERS: parameters, TRAINING: training}, progress=True)
    structure = jax.tree.structure(_rest_of(like))
    rest = jax.tree.unflatten(structure, [found[TRAINING][name] for name in training])
    model = replace_parameters(like.model, found[PARAMETERS])
    return TrainState(model, rest["optimizer"], rest["carried"], rest["step"]), found[PROGRESS]


def read_model(folder: Path, like: Model) -> Model:
    """`like` with the parameters in a checkpoint; arguments and errors are those of `read_state`.

    Nothing else of the checkpoint is read.
    """
    found = _read(folder, {PARAMETERS: named_parameters(like)})
    return replace_parameters(like, found[PARAMETERS])


def read_parameters_of(folder: Path) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint by path, as NumPy arrays; errors are those of `read_state`."""
    return read_arrays(folder, PARAMETERS)


def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of `PARAMETERS` or `TRAINING`; errors are those of `read_state`."""
    metadata = _metadata(folder)[name]
    targets = {path: np.empty(array.shape, array.dtype) for path, array in metadata.items()}
    return _load(folder, {name: targets})[name]


def write_loss(folder: Path, loss: float) -> None:
    """Notes the validation loss of a checkpoint."""
    write_whole(folder / LOSS, seal(loss))


def read_loss(content: bytes | None) -> float | None:
    """The validation loss in a file that `write_loss` wrote, None without a file.

    Raises:
      Damaged: the file is damaged.
    """
    try:
        return None if content is None else float(unseal(content))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{LOSS} is damaged ({reason(error)})") from error


def _read(
    folder: Path, wanted: Mapping[str, Mapping[str, Any]], *, progress: bool = False
) -> dict[str, Any]:
    """Checkpointables with the arrays `wanted`, once they are known to fit."""
    metadata = _metadata(folder)
    for name, arrays in wanted.items():
        _check_fit(folder / name, metadata[name], _filled(arrays))
    targets: dict[str, Any] = {
        name: {path: _target(array) for path, array in _filled(arrays).items()}
        for name, arrays in wanted.items()
    }
    found = _load(folder, targets | ({PROGRESS: None} if progress else {}))
    for name, arrays in wanted.items():
        for path in arrays.keys() - found[name].keys():
            target = _target(arrays[path])
            found[name][path] = jnp.zeros(target.shape, target.dtype, device=target.sharding)
    return found


def _target(array: Any) -> jax.ShapeDtypeStruct:
    """An array's shape and dtype, and its sharding, the first device if it has none."""
    sharding = array.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _metadata(folder: Path) -> Mapping[str, Any]:
    """The shape and dtype of every array by checkpointable and name."""
    with _reading(folder):
        return ocp.checkpointables_metadata(str(folder)).metadata


def _load(folder: Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    with _reading(folder):
        return ocp.load_checkpointables(str(folder), dict(targets))


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Orbax with our settings; its errors become one that names the checkpoint."""
    try:
        with make_context():
            yield
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read ({reason(error)})") from error


def _check_fit(path: Path, written: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Compares shapes and dtypes. Orbax would convert another dtype without a word."""
    wanted = {name: f"{array.dtype}{list(array.shape)}" for name, array in like.items()}
    saved = {name: f"{array.dtype}{list(array.shape)}" for name, array in written.items()}
    problems = [
        f"{name}: {saved.get(name, 'nothing')} in the checkpoint, "
        f"{wanted.get(name, 'nothing')} in the model"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        raise CheckpointError("\n  ".join([f"{path} belongs to another model:", *problems]))
