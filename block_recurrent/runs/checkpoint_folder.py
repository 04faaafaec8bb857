"""One checkpoint on disk: a folder of arrays and JSON, written whole, and checked when read.

parameters/  training/    arrays, written by Orbax
progress.json             the data's position and the like
arrays.json               XXH3, shape and dtype of every array
files.json                size and XXH3 of every file above
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from block_recurrent.model.language_model import LanguageModel
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.runs.array_files import load_arrays, save_arrays
from block_recurrent.runs.digests import (
    CheckpointError,
    Damaged,
    array_digests,
    check_files,
    reason,
    write_file_digests,
)
from block_recurrent.system.files import flush_to_disk
from block_recurrent.training.step import TrainState

T = TypeVar("T")
PARAMETERS, TRAINING = "parameters", "training"
ARRAYS, PROGRESS = "arrays.json", "progress.json"


def parts_of(state: TrainState) -> dict[str, Any]:
    """The arrays of a state that are saved, as trees, by the name of the part."""
    # Orbax refuses arrays without elements: the recurrent state of a model that has none.
    carried = {
        name: part
        for name, part in state.carried._asdict().items()
        if all(array.size for array in jax.tree.leaves(part))
    }
    training = {"optimizer": state.optimizer, "carried": carried, "step": state.step}
    return {PARAMETERS: named_parameters(state.model), TRAINING: training}


def write_folder(
    folder: Path, name: str, parts: Mapping[str, Any], progress: Mapping[str, Any]
) -> None:
    """Writes a checkpoint, and returns when it is on the disk.

    Args:
      folder: does not exist yet.
      name: that the folder is to have.
      parts: trees of NumPy arrays, by name.
      progress: JSON values.
    """
    folder.mkdir()
    for part, tree in parts.items():
        save_arrays(folder / part, tree)
    digests = {part: array_digests(tree) for part, tree in parts.items()}
    (folder / ARRAYS).write_text(json.dumps(digests))
    (folder / PROGRESS).write_text(json.dumps(progress))
    write_file_digests(folder, name)
    for path in [folder, *folder.rglob("*")]:
        flush_to_disk(path)


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as it can be."""
    # What is left of a save that failed may still be writing.
    for _ in range(10):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
        if not os.path.lexists(path):
            return
        time.sleep(0.1)


class Reading:
    """A checkpoint being read: what has been read is checked while the rest follows.

    Attributes:
      folder: of the checkpoint, the small files of which are as they were written.
    """

    def __init__(self, folder: Path, pool: ThreadPoolExecutor):
        check_files(folder, large=False)
        self.folder = folder
        self._pool = pool
        self._checks = [pool.submit(check_files, folder, large=True)]

    def state(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state, in the structure of `like`, and the progress; errors as of `part`.

        `like` may hold `jax.ShapeDtypeStruct`s in place of arrays.
        """
        parts = {name: self.part(name, part) for name, part in parts_of(like).items()}
        training = parts[TRAINING]
        model = replace_parameters(like.model, parts[PARAMETERS])
        carried = jax.tree.map(_without_elements, like.carried._replace(**training["carried"]))
        restored = TrainState(model, training["optimizer"], carried, training["step"])
        return restored, json.loads((self.folder / PROGRESS).read_bytes())

    def model(self, like: LanguageModel) -> LanguageModel:
        """`like` with the parameters; errors as of `part`."""
        return replace_parameters(like, self.part(PARAMETERS, named_parameters(like)))

    def part(self, name: str, like: Any = None) -> Any:
        """The arrays of a part, which `finish` will have checked.

        Args:
          name: of the part.
          like: as of `load_arrays`.

        Raises:
          CheckpointError: they are of another model, or cannot be read.
        """
        written = json.loads((self.folder / ARRAYS).read_bytes())[name]
        if like is not None:
            _check_fit(self.folder, written, like)
        with _named(self.folder / name):
            restored = load_arrays(self.folder / name, like)
        self._checks.append(self._pool.submit(_check_arrays, self.folder / name, restored, written))
        return restored

    def finish(self) -> None:
        """Waits for all checks.

        Raises:
          Damaged: a file or an array is not as it was written; the message names it.
        """
        for check in self._checks:
            check.result()


def read_checked(folder: Path, read: Callable[[Reading], T]) -> T:
    """What `read` makes of a checkpoint, if that is as it was written.

    Raises:
      Damaged: a file or an array is not as it was written; the message names it.
      CheckpointError: it is of another model.
    """
    with ThreadPoolExecutor(2) as pool:
        reading = Reading(folder, pool)
        try:
            result = read(reading)
        except Exception:
            reading.finish()  # damage, where there is any, explains the error
            raise
        reading.finish()
    return result


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Within the context, an error of Orbax names the folder; want of memory is left as it is."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read ({reason(error)})") from error


def _without_elements(array: Any) -> Any:
    """An array, made here if it has no elements, for these are not saved."""
    return array if array.size else jnp.zeros(array.shape, array.dtype, device=array.sharding)


def _check_arrays(folder: Path, restored: Any, written: Mapping[str, list[Any]]) -> None:
    for path, digest in array_digests(restored).items():
        if digest != written[path]:
            raise Damaged(f"array {path} in {folder} is not the one that was written")


def _check_fit(folder: Path, written: Mapping[str, list[Any]], like: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(like)
    wanted = {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
    saved = {path: f"{dtype}{shape}" for path, (_, shape, dtype) in written.items()}
    problems = [
        f"{path}: {saved.get(path, 'nothing')} in the checkpoint, "
        f"{wanted.get(path, 'nothing')} in the model"
        for path in sorted({*saved, *wanted})
        if saved.get(path) != wanted.get(path)
    ]
    if problems:
        raise CheckpointError("\n  ".join([f"{folder} is of another model:", *problems]))
