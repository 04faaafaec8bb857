"""Checkpoints: parameters, optimizer, carried state and data position, each as it was or not at all.

A checkpoint is a folder named after its step:

    parameters/  training/    arrays, written by Orbax
    progress.json             the data's position and the like
    arrays.json               CRC-32, shape and dtype of every array
    files.json                CRC-32 and size of every file above

It is written under another name, in the background, and renamed when it is whole and on disk.
Restoring checks every file and every array; what is damaged is left aside, and the newest whole
checkpoint is taken.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from block_recurrent.model import LanguageModel
from block_recurrent.parameters import named_parameters, replace_parameters
from block_recurrent.training.step import TrainState

SAVING, DAMAGED, BEST = ".saving-", "damaged-", "best.json"
PARAMETERS, TRAINING, PROGRESS = "parameters", "training", "progress.json"
ARRAYS, FILES = "arrays.json", "files.json"


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit the model; the message says how."""


class Damaged(CheckpointError):
    """A checkpoint is not as it was written; the message names the file or array."""


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints of one run, in `directory`/<step>.

    Args:
      directory: created when the first checkpoint is saved.
      keep: how many of the newest checkpoints stay; the best one stays besides.
      warn: takes a sentence about a checkpoint that is damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        warn: Callable[[str], None] = lambda sentence: None,
    ):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._warn = warn
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were finished, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss, or None."""
        best = self._best()
        return None if best is None else best["step"]

    def _best(self) -> dict[str, Any] | None:
        try:
            best = json.loads((self.directory / BEST).read_bytes())
            return best if best["step"] in self.steps() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(
        self, state: TrainState, progress: Mapping[str, Any], *, loss: float | None = None
    ) -> None:
        """Writes a checkpoint in the background; `wait` returns when it is on disk.

        Args:
          state: copied before this returns.
          progress: JSON values.
          loss: validation loss at this step; the checkpoint with the lowest is kept.

        Raises:
          SaveFailed: the save before this one failed. Nothing is written by this call.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps():
            self._finished(step, loss)
            return
        parts = {PARAMETERS: named_parameters(state.model), TRAINING: _training_part(state)}
        copies = jax.tree.map(lambda array: np.array(array, copy=True), parts)
        self._saving = self._worker.submit(self._write, step, copies, dict(progress), loss)

    def wait(self) -> None:
        """Waits for the save in progress, if there is one.

        Raises:
          SaveFailed: it failed.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except SaveFailed:
            raise
        except Exception as error:  # of Orbax and what is below it, of any kind
            raise SaveFailed(str(error)) from error

    def close(self) -> None:
        """Waits for the save in progress and ends the thread; errors as of `wait`."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _write(
        self, step: int, parts: dict[str, Any], progress: dict[str, Any], loss: float | None
    ) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        saving = self.directory / f"{SAVING}{step}"
        shutil.rmtree(saving, ignore_errors=True)
        try:
            saving.mkdir()
            for name, tree in parts.items():
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(saving / name, tree)
            _write_json(saving / PROGRESS, progress)
            _write_json(saving / ARRAYS, {name: _digests(tree) for name, tree in parts.items()})
            _write_json(saving / FILES, _file_digests(saving))
            _flush_to_disk(saving)
            saving.rename(self.directory / str(step))
            _flush_to_disk(self.directory, recursive=False)
        except Exception as error:
            shutil.rmtree(saving, ignore_errors=True)
            kept = self.latest_step()
            newest = "there is none yet" if kept is None else f"the newest is that of step {kept:,}"
            raise SaveFailed(
                f"the checkpoint of step {step:,} could not be written to {self.directory} "
                f"({_reason(error)}); {newest}"
            ) from error
        self._finished(step, loss)

    def _finished(self, step: int, loss: float | None) -> None:
        """Notes the best checkpoint, and removes all but it and the newest."""
        best = self._best()
        if loss is not None and (best is None or loss < best["loss"]):
            partial = self.directory / f"{SAVING}{BEST}"
            _write_json(partial, {"step": step, "loss": loss})
            partial.replace(self.directory / BEST)
        for step in self.steps()[: -self._keep]:
            if step != self.best_step():
                # A folder that is half removed must not look like a checkpoint.
                old = self.directory / f"{SAVING}{step}"
                (self.directory / str(step)).rename(old)
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest whole checkpoint, in the structure of `state`: a state, and `progress`.

        Damaged newer ones are renamed, and what a killed process left half-written is removed.

        Raises:
          CheckpointError: there is none, or it is of another model; nothing is changed.
        """

        def read(folder: Path) -> tuple[TrainState, dict[str, Any]]:
            parameters = _read_part(folder, PARAMETERS, named_parameters(state.model))
            training = _read_part(folder, TRAINING, _training_part(state))
            carried = state.carried._replace(**training["carried"])
            model = replace_parameters(state.model, parameters)
            restored = TrainState(model, training["optimizer"], carried, training["step"])
            return restored, json.loads((folder / PROGRESS).read_bytes())

        restored, damaged = self._newest_whole(read)
        for step in damaged:
            aside = self.directory / f"{DAMAGED}{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)
        for leftover in self.leftovers():
            shutil.rmtree(leftover, ignore_errors=True)
        return restored

    def restore_parameters(self, model: LanguageModel) -> tuple[int, LanguageModel]:
        """The newest whole checkpoint's step and `model` with its parameters; changes no file.

        Raises:
          CheckpointError: there is none, or it is of another model.
        """

        def read(folder: Path) -> tuple[int, LanguageModel]:
            parameters = _read_part(folder, PARAMETERS, named_parameters(model))
            return int(folder.name), replace_parameters(model, parameters)

        return self._newest_whole(read)[0]

    def leftovers(self) -> list[Path]:
        """What a killed process left half-written or half-removed."""
        return sorted(self.directory.glob(f"{SAVING}*")) if self.directory.is_dir() else []

    def _newest_whole(self, read: Callable[[Path], Any]) -> tuple[Any, list[int]]:
        """What `read` makes of the newest whole checkpoint, and the damaged steps after it."""
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            folder = self.directory / str(step)
            try:
                _check_files(folder)
                result = read(folder)
            except Damaged as error:
                damaged[step] = error
                continue
            for number, error in damaged.items():
                self._warn(
                    f"checkpoint {number:,} is damaged, {error}; continuing from {step:,} instead"
                )
            return result, list(damaged)
        raise CheckpointError(self._why_none(damaged))

    def _why_none(self, damaged: Mapping[int, Damaged]) -> str:
        if damaged:
            listed = "".join(f"\n  {step:,}: {error}" for step, error in damaged.items())
            return f"all checkpoints in {self.directory} are damaged:{listed}"
        found = sorted(path.name for path in self.directory.glob("*"))
        others = f", only {', '.join(found[:5])}" if found else ""
        return f"there is no checkpoint in {self.directory}{others}"


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _flush_to_disk(folder: Path, *, recursive: bool = True) -> None:
    """Returns when files and folders are on the disk, and not on their way there."""
    for path in [folder, *(folder.rglob("*") if recursive else ())]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _file_digests(folder: Path) -> dict[str, Any]:
    """CRC-32 and size of every file of a checkpoint, and the CRC-32 of that list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_file_digest, files))
    names = [path.relative_to(folder).as_posix() for path in files]
    listed = dict(zip(names, digests, strict=True))
    return {"files": listed, "crc32": zlib.crc32(json.dumps(listed).encode())}


def _file_digest(path: Path) -> list[int]:
    content = path.read_bytes()
    return [zlib.crc32(content), len(content)]


def _check_files(folder: Path) -> None:
    """Raises Damaged, naming a file, unless all files are as they were written."""
    try:
        written = json.loads((folder / FILES).read_bytes())
        expected = written["files"]
        if zlib.crc32(json.dumps(expected).encode()) != written["crc32"]:
            raise ValueError("its digest differs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / FILES} cannot be read ({_reason(error)})") from error
    try:
        found = _file_digests(folder)["files"]
    except OSError as error:
        raise Damaged(f"{folder} cannot be read ({_reason(error)})") from error
    for name in sorted({*expected, *found}):
        if name not in found:
            raise Damaged(f"{folder / name} is missing")
        if name not in expected:
            raise Damaged(f"{folder / name} does not belong there")
        if found[name] != expected[name]:
            sizes = f"{found[name][1]:,} bytes, {expected[name][1]:,} were written"
            raise Damaged(f"{folder / name} has changed ({sizes})")


def _digests(tree: Any) -> dict[str, list[Any]]:
    """CRC-32, shape and dtype of every array of a tree, by path."""
    arrays = {
        jax.tree_util.keystr(path): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda array: zlib.crc32(np.ravel(array).view(np.uint8)), arrays.values())
    return {
        name: [check, list(array.shape), str(array.dtype)]
        for (name, array), check in zip(arrays.items(), checks, strict=True)
    }


def _read_part(folder: Path, name: str, like: Any) -> Any:
    """The arrays of a part of a checkpoint, laid out on the devices as those of `like`.

    Raises:
      CheckpointError: they are of another model.
      Damaged: an array is not the one that was written.
    """
    written = json.loads((folder / ARRAYS).read_bytes())[name]
    _check_fit(folder, written, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / name, _abstract(like))
    except Exception as error:  # of Orbax and what is below it, of any kind
        raise Damaged(f"{folder / name} cannot be read ({_reason(error)})") from error
    for path, digest in _digests(restored).items():
        if digest != written[path]:
            raise Damaged(f"array {path} in {folder / name} is not the one that was written")
    return restored


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


def _training_part(state: TrainState) -> dict[str, Any]:
    # Orbax refuses arrays without elements: the recurrent state of a model that has none.
    carried = {name: part for name, part in state.carried._asdict().items() if _has_elements(part)}
    return {"optimizer": state.optimizer, "carried": carried, "step": state.step}


def _has_elements(part: Any) -> bool:
    return all(array.size for array in jax.tree.leaves(part))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
