"""The checkpoints of a run: parameters, optimizer, carried state and data position.

Orbax writes them in the background, each into a folder that is named after its step when it is
complete. Here they are sealed and checked, a damaged one is set aside and the next older one used,
failed saves are reported, and old checkpoints are removed. Of several processes process 0 decides
all of this; every process writes and reads its own shards of the arrays.
"""

import contextlib
import copy
import errno
import itertools
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from block_recurrent.parallel import processes
from block_recurrent.runs.bucket import FETCHING, Bucket, BucketError
from block_recurrent.runs.checkpoint_folder import (
    PROGRESS,
    arrays_of,
    begin_save,
    late_writes_ignored,
    read_arrays,
    read_state,
)
from block_recurrent.runs.errors import CheckpointError, Damaged, SaveFailed
from block_recurrent.runs.seal import LOSS, check_seal, write_seal
from block_recurrent.system.digests import seal, unseal
from block_recurrent.system.files import flush_to_disk, reason, remove, write_whole
from block_recurrent.training.step import TrainState

T = TypeVar("T")
LONGEST_SAVE = 600  # seconds until a save times out
POLL_SECONDS = 0.02
MOST_REMOVALS, QUIET_SECONDS = 40, 0.2  # of what a failed save has left
FETCHING_SECONDS = 3600  # a download from a bucket that is older has been abandoned
SAVING, DAMAGED = ".orbax-checkpoint-tmp", "damaged-"
_NUMBERS = itertools.count()  # of saves, the same in all processes


class Checkpoints:
    """The checkpoints of one run, in `directory`/<step>.

    Args:
      directory: created when the first checkpoint is saved; its parent must exist.
      keep: number of newest checkpoints to keep. The one with the lowest loss is kept as well.
      warn: called with a warning about a checkpoint that is damaged, gone or could not be written.
      bucket: holds copies of all checkpoints, for a machine that has lost its own.
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
        """The steps of all complete checkpoints, here or in the bucket, oldest first.

        Raises:
          BucketError: the bucket cannot be reached, and there is no checkpoint here.
        """
        here = self._steps_here()
        try:
            return sorted({*here, *self._bucket.steps()}) if self._bucket else here
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
        """The step of the newest checkpoint here, or None."""
        return max(self._steps_here(), default=None)

    def describe_newest(self, name: str = "newest") -> str:
        """A phrase that names the step of the newest checkpoint, which it calls `name`."""
        step = self.latest_step()
        return (
            "there is no checkpoint yet" if step is None else f"the {name} is that of step {step:,}"
        )

    def best_step(self, steps: Sequence[int] | None = None) -> int | None:
        """The step with the lowest validation loss, of the given or all steps; None if unknown."""
        steps = self.steps() if steps is None else steps
        known = [(loss, step) for step in steps if math.isfinite(loss := self._loss(step))]
        return min(known)[1] if known else None

    def _loss(self, step: int) -> float:
        """The validation loss of a checkpoint, NaN if it is not known."""
        content = None
        try:
            if self._bucket and not self._path(step).is_dir():
                content = self._bucket.read(f"{step}/{LOSS}")
            elif self._path(step, LOSS).exists():
                content = self._path(step, LOSS).read_bytes()
            return math.nan if content is None else float(unseal(content))
        except (OSError, ValueError, TypeError) as error:
            self._warn(f"the loss of checkpoint {step:,} is not known: {reason(error)}")
            return math.nan

    def _path(self, *names: str | int) -> Path:
        return self.directory.joinpath(*map(str, names))

    def save(
        self,
        state: TrainState,
        progress: Mapping[str, Any],
        *,
        loss: float | None = None,
        patience: float = 0,
    ) -> None:
        """Writes a checkpoint in the background, when the previous one is complete.

        If the step has a checkpoint, only the loss is noted.

        Args:
          state: copied before this returns.
          progress: JSON values.
          loss: validation loss at this step; the checkpoint with the lowest is kept.
          patience: number of failed saves in a row to tolerate; each of them is a warning.

        Raises:
          SaveFailed: more saves have failed, including the last. This call writes nothing.
        """
        step = int(state.step)
        self.wait(strict=False)
        if not processes.decided(lambda: self._is_wanted(step, loss, patience)):
            return
        items = {**arrays_of(state), PROGRESS: copy.deepcopy(progress)}
        partial = self._path(f"{step}{SAVING}")

        def complete() -> None:
            if loss is not None:
                write_whole(partial / LOSS, seal(loss))
            write_seal(partial, step)

        try:
            finish = begin_save(self._path(step), items, complete, LONGEST_SAVE)
        except Exception as error:
            if processes.lost(error):
                raise
            failed: Future[None] = Future()  # reported like a failure in the background
            failed.set_exception(error)
            finish = failed.result
        subject = f"save {next(_NUMBERS)}"
        self._saving = self._worker.submit(self._finish, step, finish, subject)

    def _is_wanted(self, step: int, loss: float | None, patience: float) -> bool:
        """Whether there is no checkpoint of the step yet. If there is one, its loss is noted."""
        if len(self._failures) > patience:
            failures, self._failures = self._failures, []
            raise failures[-1]
        try:
            self.tidy()
            here = self._steps_here()
            if self._newest is not None and self._newest not in here:
                self._warn(f"checkpoint {self._newest:,} is no longer in {self.directory}")
                self._newest = None
            if step in here:
                if loss is not None:
                    self._saving = self._worker.submit(self._note_loss, step, loss)
                return False
            if not self.directory.is_dir():
                self.directory.mkdir()
                flush_to_disk(self.directory.parent)
            if self._path(step).exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(step))
        except OSError as error:
            self._saving = self._worker.submit(self._fail, step, error)
            return False
        return True

    def _finish(self, step: int, finish: Callable[[], None], subject: str) -> None:
        """Waits in a thread until all processes have saved, and removes old checkpoints."""
        with late_writes_ignored():
            if not processes.is_primary():
                processes.report(subject, finish)
                return
            try:
                processes.reports(subject, finish, LONGEST_SAVE)
                flush_to_disk(self.directory)
            except Exception as error:  # of any kind, for nobody would see it in this thread
                self._remove_temporary(self._path(f"{step}{SAVING}"))
                self._fail(step, error)
        self._failures, self._newest = [], step
        self._retain(step)

    def _note_loss(self, step: int, loss: float) -> None:
        try:
            write_whole(self._path(step, LOSS), seal(loss))
        except OSError as error:
            self._fail(step, error, "was written, but not its loss, to")
        self._failures = []
        self._retain()

    def _remove_temporary(self, folder: Path) -> None:
        """Removes what a failed save has left, until it stays away.

        Orbax goes on writing other arrays for a while, and makes their folders anew.
        """
        for _ in range(MOST_REMOVALS):
            remove(folder)
            time.sleep(QUIET_SECONDS)
            if not folder.exists():
                return

    def _fail(self, step: int, error: Exception, what: str = "could not be written to") -> NoReturn:
        sentence = (
            f"the checkpoint of step {step:,} {what} {self.directory} ({reason(error)}); "
            f"{self.describe_newest()}"
        )
        self._failures.append(SaveFailed(sentence))  # without the frames of `error`, with arrays
        raise SaveFailed(sentence) from error

    def _retain(self, new: int | None = None) -> None:
        """Removes old checkpoints here and in the bucket, which gets a copy of every other one.

        Args:
          new: a checkpoint that replaces its copy.
        """
        for step in self._old(self._steps_here()):
            remove(self._path(step))
        if self._bucket is None:
            return
        try:
            self._bucket.own()
            here, there = self._steps_here(), self._bucket.steps()
            for step in here:
                if step == new or step not in there:
                    self._bucket.upload(step, self._path(step))
                elif self._path(step, LOSS).exists():
                    self._bucket.write(f"{step}/{LOSS}", self._path(step, LOSS).read_bytes())
            for step in self._old(sorted({*here, *there})):
                self._bucket.remove(step)
        except OSError as error:
            self._warn(f"the copies in the bucket are not up to date: {error}")

    def _old(self, steps: Sequence[int]) -> set[int]:
        """All steps but those of the newest checkpoints and of the best."""
        return {*steps} - {*steps[-self._keep :], self.best_step(steps)}

    def wait(self, *, strict: bool = True) -> None:
        """Waits in all processes until the save in progress, if there is one, is on the disk.

        Raises:
          SaveFailed: it failed. Unless `strict`, this counts, but is only a warning.
        """
        while processes.several() and processes.any_of(
            self._saving is not None and not self._saving.done()
        ):
            time.sleep(POLL_SECONDS)  # a lost process breaks the exchange
        processes.decided(lambda: self.settle(strict=strict))

    def settle(self, *, strict: bool = False) -> None:
        """Waits in this process alone. A failure is only a warning, unless `strict`, but counts."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except SaveFailed as error:
            if strict:
                self._failures = []
                raise
            self._warn(str(error))

    def close(self) -> None:
        """`settle`, and ends all threads."""
        self.settle()
        self._worker.shutdown()

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest intact checkpoint, in the structure of `state`: a state and the progress.

        `state` may hold `jax.ShapeDtypeStruct`s in place of arrays. A checkpoint that is only in
        the bucket is copied from there. No other file is changed: `tidy` sets damaged checkpoints
        aside.

        Raises:
          CheckpointError: there is none, or it belongs to another model.
        """
        self._newest, restored = self.read(lambda folder: read_state(folder, state))
        return restored

    def read(self, read: Callable[[Path], T], step: int | None = None) -> tuple[int, T]:
        """A checkpoint's step, and the result of `read` for its folder; files as by `restore`.

        Args:
          read: a function of `checkpoint_folder`.
          step: the checkpoint's step; the newest intact checkpoint unless given.

        Raises:
          CheckpointError: there is none, it is damaged, or `read` raises it.
        """
        steps = processes.decided(self.steps)
        damaged: dict[int, CheckpointError] = {}
        if step is not None:
            if step in steps:
                return step, self._read_one(step, read)
            found = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint {step} in {self.directory}: found {found}"
            )
        while steps:
            step = steps[-1]
            try:
                result = self._read_one(step, read)
            except BucketError:
                raise
            except CheckpointError as error:
                if not isinstance(error, Damaged) and processes.decided(self._path(step).is_dir):
                    raise
                damaged[step] = error
                steps = [each for each in processes.decided(self.steps) if each not in damaged]
                continue
            here = processes.decided(self._steps_here)
            self._damaged = [other for other in damaged if other in here]  # not removed meanwhile
            for other in self._damaged:
                sentence = f"checkpoint {other:,} is damaged, {damaged[other]}"
                self._warn(f"{sentence}; using {step:,} instead")
            return step, result
        raise CheckpointError(self._why_none(damaged))

    def _read_one(self, step: int, read: Callable[[Path], T]) -> T:
        """The result of `read`. First each process checks a part of the checkpoint's files."""
        folder, part, parts = self._path(step), processes.index(), processes.count()
        if bucket := self._bucket:
            processes.decided(lambda: folder.is_dir() or bucket.download(step, folder))
        processes.together(lambda: check_seal(folder, part, parts))
        return processes.together(lambda: read(folder))

    def _why_none(self, damaged: Mapping[int, Exception]) -> str:
        if damaged:
            listed = "".join(f"\n  {step:,}: {error}" for step, error in damaged.items())
            return (
                f"all checkpoints in {self.directory} are damaged. Nothing was changed. To start "
                f"afresh, choose another directory or remove this one:{listed}"
            )
        found = sorted(path.name for path in self.directory.glob("*"))
        others = f", only {', '.join(found[:5])}" if found else ""
        return f"there is no checkpoint in {self.directory}{others}"

    def tidy(self) -> None:
        """Renames the damaged checkpoints that `restore` found, and removes what kills have left.

        Only one process at a time may save or tidy in a directory.
        """
        for step in self._damaged:
            aside = self.directory / f"{DAMAGED}{step}"
            remove(aside)
            self._path(step).rename(aside)
            with contextlib.suppress(BucketError):
                if self._bucket:
                    self._bucket.own()
                    self._bucket.remove(step)
        self._damaged = []
        old = time.time() - FETCHING_SECONDS
        for path in self.directory.glob("*"):
            abandoned = path.name.startswith(FETCHING) and path.stat().st_mtime < old
            if abandoned or path.name.endswith(SAVING):
                remove(path)


def read_parameters(
    directory: str | os.PathLike[str], step: int | None = None
) -> dict[str, np.ndarray]:
    """The parameters in a run's checkpoint by path, as NumPy arrays; needs no model.

    Args:
      directory: the folder `checkpoints` of a work directory.
      step: the checkpoint's step; the newest intact checkpoint unless given, with a Python warning
        for every damaged one that is newer.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    store = Checkpoints(directory, warn=lambda sentence: warnings.warn(sentence, stacklevel=2))
    return store.read(read_arrays, step)[1]
