"""One checkpoint on disk: a folder of files whose every byte is checked when it is read.

parameters.safetensors    the parameters by path
training.safetensors      the optimizer's and the carried state, and the step
checkpoint.json           dtype, shape and XXH3 of every array; the data's position and the like;
                          and its own digest

Of N processes each writes some of the arrays, to parameters-00001-of-0000N.safetensors and the
like. Every array is in one piece: nothing in it depends on the devices that it was on.
"""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.runs.array_file import Entry, read_arrays, write_arrays
from block_recurrent.runs.errors import CheckpointError, Damaged
from block_recurrent.runs.shares import file_of
from block_recurrent.system.digests import seal, unseal
from block_recurrent.system.files import flush_to_disk, reason
from block_recurrent.training.step import TrainState

FORMAT = 1
CONTENTS = "checkpoint.json"
PARAMETERS, TRAINING = "parameters.safetensors", "training.safetensors"
# What is not so much unreadable as not there, or on a disk that has lost it.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      files: by name, the arrays in each by name.
      progress: JSON values.
    """

    files: dict[str, dict[str, Entry]]
    progress: dict[str, Any]

    def entries(self, file: str) -> dict[str, Entry]:
        """The arrays of a file, or of all its parts."""
        parts = [entries for part, entries in self.files.items() if file_of(part) == file]
        return {name: entry for entries in parts for name, entry in entries.items()}


def arrays_of(state: TrainState) -> dict[str, dict[str, Any]]:
    """The arrays of a state by name, in the files that they are saved to."""
    leaves = jax.tree_util.tree_leaves_with_path(_rest_of(state))
    training = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {PARAMETERS: named_parameters(state.model), TRAINING: training}


def _rest_of(state: TrainState) -> dict[str, Any]:
    return {"optimizer": state.optimizer, "carried": state.carried, "step": state.step}


def write_files(
    folder: Path, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Entry]]:
    """Writes arrays by file and name; returns what `write_contents` wants to know of them.

    Returns when they are on the disk.

    Raises:
      OSError: they cannot be written.
    """
    files = {file: write_arrays(folder / file, named) for file, named in arrays.items()}
    for file in files:
        flush_to_disk(folder / file)
    return files


def write_contents(
    folder: Path,
    name: str,
    files: Mapping[str, Mapping[str, Entry]],
    progress: Mapping[str, Any],
) -> None:
    """Writes the list of what a checkpoint holds.

    Args:
      folder: of its files.
      name: that the folder is to have.
      files: all of them, by name.
      progress: JSON values.

    Raises:
      OSError: it cannot be written, or other files are there than these.
    """
    found = {path.name for path in folder.iterdir()}
    if strangers := sorted(found - files.keys()):
        raise FileExistsError(f"{strangers[0]} was there before and cannot be removed")
    if missing := sorted(files.keys() - found):
        raise FileNotFoundError(f"{missing[0]} is not there: do all processes see the same files?")
    contents = {"format": FORMAT, "name": name, "files": files, "progress": progress}
    (folder / CONTENTS).write_text(seal(contents), encoding="utf-8")


def read_state(folder: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state in a checkpoint, in the structure and on the devices of `like`, and the progress.

    Args:
      folder: of the checkpoint.
      like: arrays or `jax.ShapeDtypeStruct`s; the first device where these have no sharding.

    Raises:
      Damaged: the checkpoint is not as it was written; the message names the file or array.
      CheckpointError: it is of another model, or cannot be read at present.
    """
    contents, wanted = read_contents(folder), arrays_of(like)
    found = _read(folder, contents, wanted, _place)
    structure = jax.tree.structure(_rest_of(like))
    rest = jax.tree.unflatten(structure, [found[TRAINING][name] for name in wanted[TRAINING]])
    model = replace_parameters(like.model, found[PARAMETERS])
    return TrainState(model, rest["optimizer"], rest["carried"], rest["step"]), contents.progress


def read_model(folder: Path, like: Model) -> Model:
    """`like` with the parameters in a checkpoint; arguments and errors are those of `read_state`.

    The rest of the checkpoint is checked as well.
    """
    found = _read(folder, read_contents(folder), {PARAMETERS: named_parameters(like)}, _place)
    return replace_parameters(like, found[PARAMETERS])


def read_parameters_of(folder: Path) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint by path, as NumPy arrays; errors are those of `read_state`."""
    contents = read_contents(folder)
    wanted = {PARAMETERS: contents.entries(PARAMETERS)}
    return _read(folder, contents, wanted, lambda values, like: values)[PARAMETERS]


def check_folder(folder: Path) -> None:
    """Reads a checkpoint and keeps nothing; errors are those of `read_state`."""
    _read(folder, read_contents(folder), {}, _place)


def read_contents(folder: Path) -> Contents:
    """What a checkpoint holds, if its files have the names that they were given.

    Raises:
      Damaged: a name is missing, or should not be there, or the list of contents is damaged.
      CheckpointError: it is of another format, or cannot be read at present.
    """
    path = folder / CONTENTS
    try:
        sealed = unseal(path.read_bytes())
        name, written = sealed["name"], sealed["format"]
        found = {file.name for file in folder.iterdir()} - {CONTENTS}
    except OSError as error:
        raise _unreadable(error, path) from error
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} cannot be read ({reason(error)})") from error
    if written != FORMAT:
        raise CheckpointError(
            f"{path} is of format {written}, this version reads and writes {FORMAT}: use the "
            "version that wrote it"
        )
    if name != folder.name:
        raise Damaged(f"{path} is of checkpoint {name}")
    for other in sorted(found ^ set(sealed["files"])):
        what = "does not belong there" if other in found else "is missing"
        raise Damaged(f"{folder / other} {what}")
    files = {
        file: {name: Entry(*entry) for name, entry in entries.items()}
        for file, entries in sealed["files"].items()
    }
    return Contents(files, sealed["progress"])


def _read(
    folder: Path,
    contents: Contents,
    wanted: Mapping[str, Mapping[str, Any]],
    place: Callable[[np.ndarray, Any], Any],
) -> dict[str, dict[str, Any]]:
    """The arrays of the files in `wanted`, each placed as there; the other files are checked."""
    for file, like in wanted.items():
        _check_fit(folder / file, contents.entries(file), like)
    found: dict[str, dict[str, Any]] = {file: {} for file in wanted}
    try:
        for part, entries in contents.files.items():
            file = file_of(part)
            for name, array in read_arrays(folder / part, entries):
                if file in wanted:
                    found[file][name] = place(array, wanted[file][name])
    except OSError as error:
        raise _unreadable(error, folder) from error
    return found


def _place(values: np.ndarray, like: Any) -> jax.Array:
    """An array on devices; each process, if there are several, places its own part."""
    sharding = like.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _check_fit(path: Path, written: Mapping[str, Entry], like: Mapping[str, Any]) -> None:
    wanted = {name: f"{array.dtype}{list(array.shape)}" for name, array in like.items()}
    saved = {name: f"{entry.dtype}{entry.shape}" for name, entry in written.items()}
    problems = [
        f"{name}: {saved.get(name, 'nothing')} in the checkpoint, "
        f"{wanted.get(name, 'nothing')} in the model"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        raise CheckpointError("\n  ".join([f"{path} is of another model:", *problems]))


def _unreadable(error: OSError, path: Path) -> CheckpointError:
    sentence = f"{error.filename or path} cannot be read ({reason(error)})"
    return Damaged(sentence) if error.errno in GONE else CheckpointError(sentence)
