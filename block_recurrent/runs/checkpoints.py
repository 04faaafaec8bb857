"""Checkpoints: parameters, optimizer, carried state, data position, as they were or not at all.

A checkpoint is a folder named after its step, see `checkpoint_folder`. It is written in the
background, under another name until it is whole and on the disk. Restoring checks every byte; what
is damaged is left aside, and the newest whole checkpoint is taken.

Of several processes, which see the same files, each writes a part of a checkpoint, and process 0
the rest when it has heard of all parts; what it finds is so for all.
"""

import contextlib
import functools
import itertools
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.runs.bucket import FETCHING, Bucket, BucketError
from block_recurrent.runs.checkpoint_folder import (
    arrays_of,
    read_model,
    read_parameters_of,
    read_state,
    write_contents,
    write_files,
)
from block_recurrent.runs.errors import CheckpointError, Damaged, SaveFailed
from block_recurrent.runs.shares import own_share
from block_recurrent.system.digests import seal, unseal
from block_recurrent.system.files import PARTIAL, put_in_place, reason, remove, write_whole
from block_recurrent.training.step import TrainState

T = TypeVar("T")
LONGEST_SAVE = 3600  # seconds until the parts of other processes are given up
POLL_SECONDS = 0.02
_NUMBERS = itertools.count()  # of saves, the same in all processes
FETCHING_SECONDS = 3600  # without a new file in it, what was being copied from a bucket is left
SAVING, REMOVING, DAMAGED, BEST = ".saving-", ".removing-", "damaged-", "best.json"


class Checkpoints:
    """The checkpoints of one run, in `directory`/<step>.

    Args:
      directory: created when the first checkpoint is saved, in a directory that exists.
      keep: how many of the newest checkpoints stay; the best one stays besides.
      warn: takes a sentence about a checkpoint that is damaged or gone, or could not be written.
      bucket: has copies of all of them, for a machine that has lost its own.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        warn: Callable[[str], None] = lambda sentence: None,
        bucket: Bucket | None = None,
    ):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._warn = warn
        self._bucket = bucket
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._newest: int | None = None
        self._failures: list[SaveFailed] = []  # since a save succeeded or `wait` raised one
        self._damaged: list[int] = []

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were finished, here or in the bucket, oldest first."""
        here = self._steps_here()
        if self._bucket is None:
            return here
        try:
            return sorted({*here, *self._bucket.steps()})
        except BucketError as error:
            if not here:
                raise
            self._warn(str(error))
            return here

    def _steps_here(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        folders = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in folders if re.fullmatch("0|[1-9][0-9]*", name))

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return max(self._steps_here(), default=None)

    def describe_newest(self, name: str) -> str:
        """Which step's the newest checkpoint is, in words that call it `name`."""
        step = self.latest_step()
        return f"there is no {name}" if step is None else f"the {name} is that of step {step:,}"

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss, or None."""
        with contextlib.suppress(OSError, Damaged):
            return self._best()[0]
        return None

    def _best(self) -> tuple[int | None, float]:
        """The best checkpoint's step and loss, None and infinity if there is none.

        Raises:
          OSError: it cannot be known at present.
          Damaged: it is no longer known.
        """
        path = self.directory / BEST
        try:
            content = self._best_content(path)
            if content is None:
                return None, math.inf
            step, loss = unseal(content)
        except (ValueError, TypeError) as error:
            raise Damaged(f"{path} is damaged ({reason(error)})") from error
        there = step in self._steps_here() or step in self.steps()
        return (step, loss) if there else (None, math.inf)

    def _best_content(self, path: Path) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        return self._bucket.read(BEST) if self._bucket else None

    def _lowest_loss(self) -> float:
        with contextlib.suppress(Damaged):
            return self._best()[1]
        return math.inf

    def save(
        self,
        state: TrainState,
        progress: Mapping[str, Any],
        *,
        loss: float | None = None,
        patience: float = 0,
    ) -> None:
        """Writes a checkpoint in the background, when the one before is written.

        Args:
          state: copied before this returns.
          progress: JSON values.
          loss: validation loss at this step; the checkpoint with the lowest is kept.
          patience: how many saves in a row may have failed before, each of them a warning.

        Raises:
          SaveFailed: more have failed, among them the last. Nothing is written by this call.
        """
        step = int(state.step)
        self._all_done()
        if not processes.decided(lambda: self._is_wanted(step, loss, patience)):
            return
        copies = own_share(arrays_of(state))
        subject = f"checkpoint {next(_NUMBERS)}"
        write = functools.partial(self._write_files, self._saving_folder(step), copies)
        if processes.is_primary():
            self._submit(self._write, step, write, dict(progress), loss, subject)
        else:
            self._submit(processes.report, subject, write)

    def _is_wanted(self, step: int, loss: float | None, patience: float) -> bool:
        """Whether there is no checkpoint of the step yet; if there is, its loss is noted."""
        self.settle()
        if len(self._failures) > patience:
            failures, self._failures = self._failures, []
            raise failures[-1]
        self._set_damaged_aside()
        self._look_for_newest()
        if step in self._steps_here():
            self._submit(self._finish, step, loss)
            return False
        with contextlib.suppress(OSError):  # what stays is noticed when files are written there
            self._remove_leftovers()
        return True

    def _submit(self, save: Callable[..., None], *arguments: Any) -> None:
        def attempt() -> None:
            try:
                save(*arguments)
            except SaveFailed as error:
                self._failures.append(SaveFailed(str(error)))  # without its frames and their arrays
                raise
            self._failures = []

        self._saving = self._worker.submit(attempt)

    def _look_for_newest(self) -> None:
        if self._newest is not None and self._newest not in self._steps_here():
            self._warn(f"checkpoint {self._newest:,} is no longer in {self.directory}")
            self._newest = None

    def wait(self) -> None:
        """Waits until the save in progress, if there is one, is on the disk.

        Raises:
          SaveFailed: it failed.
        """
        self._all_done()
        processes.decided(self._wait)

    def _all_done(self) -> None:
        """Returns when no process is saving; one that is gone meanwhile breaks the exchange."""
        while processes.several() and processes.any_of(self._is_saving()):
            time.sleep(POLL_SECONDS)

    def _is_saving(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except SaveFailed:
            self._failures = []
            raise

    def settle(self) -> None:
        """Waits for the save in progress; that it has failed is a warning here, and counts."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except SaveFailed as error:
            self._warn(str(error))

    def settle_all(self) -> None:
        """`settle` in process 0, when all processes are done."""
        self._all_done()
        processes.decided(self.settle)

    def close(self) -> None:
        """Waits for the save in progress and ends the thread. Raises: what `wait` raises."""
        try:
            self._wait()
        finally:
            self._worker.shutdown()

    def _write(
        self,
        step: int,
        write: Callable[[], dict[str, Any]],
        progress: dict[str, Any],
        loss: float | None,
        subject: str,
    ) -> None:
        """Writes a checkpoint: `write` does process 0's files, the others report of theirs."""
        folder, saving = self.directory / str(step), self._saving_folder(step)
        try:
            written = processes.reports(subject, write, LONGEST_SAVE)
            files = {name: entries for part in written for name, entries in part.items()}
            write_contents(saving, folder.name, files, progress)
            put_in_place(saving, folder)
        except Exception as error:  # of any kind, for nobody would see it in this thread
            remove(saving)
            kept = self.latest_step()
            newest = "there is none yet" if kept is None else f"the newest is that of step {kept:,}"
            raise SaveFailed(
                f"the checkpoint of step {step:,} could not be written to {self.directory} "
                f"({reason(error)}); {newest}"
            ) from error
        self._newest = step
        self._finish(step, loss, written=True)

    def _saving_folder(self, step: int) -> Path:
        """Where a checkpoint is put together."""
        return self.directory / f"{SAVING}{step}"

    def _write_files(self, saving: Path, arrays: dict[str, Any]) -> dict[str, Any]:
        """Writes a process's files of a checkpoint."""
        self.directory.mkdir(exist_ok=True)
        saving.mkdir(exist_ok=True)
        return write_files(saving, arrays)

    def _finish(self, step: int, loss: float | None, *, written: bool = False) -> None:
        """Notes the best checkpoint, and removes all but it and the newest.

        `written`: the checkpoint is new, whatever the bucket has under its name.
        """
        try:
            try:
                if loss is not None and loss < self._lowest_loss():
                    write_whole(self.directory / BEST, seal([step, loss]))
            finally:
                self._remove_old()
        except OSError as error:
            raise SaveFailed(
                f"the checkpoint of step {step:,} was written to {self.directory}, but not what "
                f"follows: {BEST}, and the removal of old checkpoints ({reason(error)})"
            ) from error
        if self._bucket:
            try:
                self._copy_to_bucket(self._bucket, step if written else None)
            except BucketError as error:
                self._warn(f"the copies in the bucket are not up to date: {error}")

    def _copy_to_bucket(self, bucket: Bucket, new: int | None) -> None:
        """Copies what the bucket lacks, and removes there what is old."""
        bucket.own()
        here, there, noted = self._steps_here(), bucket.steps(), self.directory / BEST
        for step in here:
            if step not in there or step == new:
                bucket.upload(step, self.directory / str(step))
        if noted.exists():
            bucket.write(BEST, noted.read_bytes())
        best = self.best_step()
        for step in sorted({*here, *there})[: -self._keep]:
            if step != best:
                bucket.remove(step)

    def _remove_old(self) -> None:
        try:
            best, _ = self._best()
        except Damaged as error:
            self._warn(f"{error}: no checkpoint is removed before the next evaluation")
            return
        for step in self._steps_here()[: -self._keep]:
            if step != best:
                # A folder that is half removed must not look like a checkpoint.
                old = self.directory / f"{REMOVING}{step}"
                (self.directory / str(step)).rename(old)
                remove(old)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest whole checkpoint, in the structure of `state`: a state, and `progress`.

        `state` may hold `jax.ShapeDtypeStruct`s in place of arrays. No file is changed, but that it
        is copied from the bucket if it is only there; `tidy` sets damaged checkpoints aside.

        Raises:
          CheckpointError: there is none, or it is of another model.
        """
        self._newest, restored = self._newest_whole(lambda folder: read_state(folder, state))
        return restored

    def restore_parameters(self, model: Model, step: int | None = None) -> tuple[int, Model]:
        """A checkpoint's step and `model` with its parameters; files as with `restore`.

        Args:
          model: of the same configuration; may hold `jax.ShapeDtypeStruct`s in place of arrays.
          step: of the checkpoint; the newest whole one unless given.

        Raises:
          CheckpointError: there is none, it is damaged, or it is of another model.
        """
        return self.read(lambda folder: read_model(folder, model), step)

    def read(self, read: Callable[[Path], T], step: int | None = None) -> tuple[int, T]:
        """A checkpoint's step, and what `read` makes of its folder.

        Args:
          read: a function of `checkpoint_folder`.
          step: of the checkpoint; the newest whole one unless given.

        Raises:
          CheckpointError: there is none, it is damaged, or `read` raises it.
        """
        if step is None:
            return self._newest_whole(read)
        steps = processes.decided(self.steps)
        if step not in steps:
            found = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint {step} in {self.directory}: found {found}"
            )
        folder = self._fetched(step)
        return step, processes.together(lambda: read(folder))

    def tidy(self) -> None:
        """Renames the damaged checkpoints that `restore` found, and removes what is half-written.

        Only one process at a time may save or tidy in a directory.
        """
        self._set_damaged_aside()
        self._remove_leftovers()

    def _set_damaged_aside(self) -> None:
        for step in self._damaged:
            aside = self.directory / f"{DAMAGED}{step}"
            remove(aside)
            (self.directory / str(step)).rename(aside)
            if self._bucket:
                with contextlib.suppress(BucketError):
                    self._bucket.own()
                    self._bucket.remove(step)
        self._damaged = []

    def _remove_leftovers(self) -> None:
        for leftover in self.leftovers():
            remove(leftover)

    def leftovers(self) -> list[Path]:
        """What a killed process left half-written or half-removed."""
        names = (f"{SAVING}*", f"{REMOVING}*", f"{BEST}{PARTIAL}")
        found = [path for name in names for path in self.directory.glob(name)]
        old = time.time() - FETCHING_SECONDS
        fetched = [
            path for path in self.directory.glob(f"{FETCHING}*") if path.stat().st_mtime < old
        ]
        return sorted(found + fetched)

    def _newest_whole(self, read: Callable[[Path], T]) -> tuple[int, T]:
        """The newest whole checkpoint's step, and what `read` makes of it."""
        damaged: dict[int, Damaged] = {}
        while left := self._left(damaged):
            folder = self._fetched(left[-1])
            try:
                result = processes.together(lambda folder=folder: read(folder))
            except Damaged as error:
                if processes.decided(folder.is_dir):  # else it was removed meanwhile
                    damaged[left[-1]] = error
                continue
            for step, error in damaged.items():
                self._warn(f"checkpoint {step:,} is damaged, {error}; using {left[-1]:,} instead")
            self._damaged = list(damaged)
            return left[-1], result
        raise CheckpointError(self._why_none(damaged))

    def _fetched(self, step: int) -> Path:
        """The folder of a checkpoint, which is copied from the bucket if it is not here."""
        folder = self.directory / str(step)

        def fetch() -> None:
            if self._bucket and not folder.is_dir():
                self._bucket.download(step, folder)

        processes.decided(fetch)
        return folder

    def _left(self, damaged: Collection[int]) -> list[int]:
        """The steps of all checkpoints that were not found to be damaged, oldest first."""
        return processes.decided(lambda: [step for step in self.steps() if step not in damaged])

    def _why_none(self, damaged: Mapping[int, Damaged]) -> str:
        if damaged:
            listed = "".join(f"\n  {step:,}: {error}" for step, error in damaged.items())
            return (
                f"all checkpoints in {self.directory} are damaged. Nothing was changed. To start "
                f"afresh, choose another directory or remove this one:{listed}"
            )
        found = sorted(path.name for path in self.directory.glob("*"))
        others = f", only {', '.join(found[:5])}" if found else ""
        return f"there is no checkpoint in {self.directory}{others}"


def read_parameters(
    directory: str | os.PathLike[str], step: int | None = None
) -> dict[str, np.ndarray]:
    """The parameters in a run's checkpoints, by path, without a model; changes no file.

    Args:
      directory: that of the checkpoints.
      step: of the checkpoint; the newest whole one unless given, with a Python warning for every
        damaged one after it.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    store = Checkpoints(directory, warn=lambda sentence: warnings.warn(sentence, stacklevel=2))
    return store.read(read_parameters_of, step)[1]
