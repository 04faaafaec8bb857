"""The checkpoints of a run: parameters, optimizer, carried state and data position.

Orbax writes them in the background, each into a folder that is named after its step when it is
complete, and removes old ones. What Orbax lacks is here: a sealed checkpoint is checked before it
is restored, a damaged one is set aside and the next older one is used, a failed save is reported,
and several processes agree on all of this. Process 0 decides; every process writes and reads its
own shards of the arrays.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.runs.bucket import FETCHING, Bucket, BucketError
from block_recurrent.runs.checkpoint_folder import (
    PROGRESS,
    arrays_of,
    begin_save,
    late_writes_ignored,
    read_loss,
    read_model,
    read_parameters_of,
    read_state,
    write_loss,
)
from block_recurrent.runs.errors import CheckpointError, Damaged, SaveFailed
from block_recurrent.runs.seal import LOSS, check_seal, write_seal
from block_recurrent.system.files import flush_to_disk, reason, remove
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
        """The steps of all complete checkpoints, here or in the bucket, oldest first."""
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
        """A phrase that names the newest checkpoint's step and calls the checkpoint `name`."""
        step = self.latest_step()
        return f"there is no {name}" if step is None else f"the {name} is that of step {step:,}"

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss, or None."""
        return self._best_of(self.steps())

    def _best_of(self, steps: Sequence[int]) -> int | None:
        losses = {step: self._loss(step) for step in steps}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known, key=lambda step: known[step], default=None)

    def _loss(self, step: int) -> float | None:
        """The validation loss of a checkpoint, None if it is not known or not a number."""
        try:
            if self._path(step).is_dir():
                path = self._path(step, LOSS)
                content = path.read_bytes() if path.exists() else None
            else:
                content = self._bucket.read(f"{step}/{LOSS}") if self._bucket else None
            loss = read_loss(content)
        except (OSError, Damaged) as error:
            self._warn(f"the loss of checkpoint {step:,} is not known: {reason(error)}")
            return None
        return loss if loss is not None and math.isfinite(loss) else None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's preservation policy: the newest checkpoints stay, and the best.

        Orbax's own policy could not take a loss that becomes known after the checkpoint.
        """
        steps = [found.step for found in checkpoints]  # among them the one that is being saved
        best = processes.decided(lambda: self._best_of(self._steps_here()))
        return [step == best or step in steps[-self._keep :] for step in steps]

    def _kept(self, steps: Sequence[int]) -> set[int]:
        best = self._best_of(steps)
        return {*steps[-self._keep :]} | (set() if best is None else {best})

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
        self._all_done()
        if not processes.decided(lambda: self._is_wanted(step, loss, patience)):
            return
        try:
            finish = begin_save(
                self.directory,
                step,
                {**arrays_of(state), PROGRESS: copy.deepcopy(progress)},
                complete=lambda: self._complete(step, loss),
                policy=self,
                seconds=LONGEST_SAVE,
            )
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
        self.settle()
        if len(self._failures) > patience:
            failures, self._failures = self._failures, []
            raise failures[-1]
        self._set_damaged_aside()
        if self._newest is not None and self._newest not in self._steps_here():
            self._warn(f"checkpoint {self._newest:,} is no longer in {self.directory}")
            self._newest = None
        if step in self._steps_here():
            if loss is not None:
                self._saving = self._worker.submit(self._note_loss, step, loss)
            return False
        try:
            self.directory.mkdir(exist_ok=True)
            if self._path(step).exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(step))
            self._remove_leftovers()
        except OSError as error:
            self._saving = self._worker.submit(self._fail, step, error)
            return False
        return True

    def _note_loss(self, step: int, loss: float) -> None:
        try:
            write_loss(self._path(step), loss)
            for old in set(self._steps_here()) - self._kept(self._steps_here()):
                remove(self._path(old))  # it was the best one
        except OSError as error:
            self._fail(step, error, "was written, but not its loss, to")
        self._failures = []
        self._update_bucket()

    def _path(self, *names: str | int) -> Path:
        return self.directory.joinpath(*map(str, names))

    def _complete(self, step: int, loss: float | None) -> None:
        """Adds to a checkpoint what Orbax lacks, just before it gets its name."""
        folder = self._path(f"{step}{SAVING}")
        if loss is not None:
            write_loss(folder, loss)
        write_seal(folder, step)

    def _finish(self, step: int, finish: Callable[[], None], subject: str) -> None:
        """Waits in a thread until all processes have saved, and copies to the bucket."""
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
        self._update_bucket(step)

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
        kept = self.latest_step()
        newest = "there is none yet" if kept is None else f"the newest is that of step {kept:,}"
        sentence = f"the checkpoint of step {step:,} {what} {self.directory} ({reason(error)})"
        self._failures.append(SaveFailed(f"{sentence}; {newest}"))
        raise SaveFailed(f"{sentence}; {newest}") from error  # its frames hold arrays for a while

    def wait(self) -> None:
        """Waits until the save in progress, if there is one, is on the disk.

        Raises:
          SaveFailed: it failed.
        """
        self._all_done()
        processes.decided(self._wait)

    def _all_done(self) -> None:
        """Returns when no process is saving. A lost process breaks the exchange."""
        while processes.several() and processes.any_of(self._is_saving()):
            time.sleep(POLL_SECONDS)

    def _is_saving(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def _end_save(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _wait(self) -> None:
        try:
            self._end_save()
        except SaveFailed:
            self._failures = []
            raise

    def settle(self) -> None:
        """Waits for the save in progress. A failure counts, but is only a warning."""
        try:
            self._end_save()
        except SaveFailed as error:
            self._warn(str(error))

    def settle_all(self) -> None:
        """`settle` in process 0, when all processes are done."""
        self._all_done()
        processes.decided(self.settle)

    def close(self) -> None:
        """Waits for the save in progress and ends all threads. Raises: what `wait` raises."""
        try:
            self._wait()
        finally:
            self._worker.shutdown()

    def _update_bucket(self, new: int | None = None) -> None:
        if self._bucket:
            try:
                self._copy_to_bucket(self._bucket, new)
            except BucketError as error:
                self._warn(f"the copies in the bucket are not up to date: {error}")

    def _copy_to_bucket(self, bucket: Bucket, new: int | None) -> None:
        """Copies what the bucket lacks and a new checkpoint, and removes what is old."""
        bucket.own()
        here, there = self._steps_here(), bucket.steps()
        for step in here:
            if step not in there or step == new:
                bucket.upload(step, self._path(step))
            elif self._path(step, LOSS).exists():
                bucket.write(f"{step}/{LOSS}", self._path(step, LOSS).read_bytes())
        steps = sorted({*here, *there})
        for step in set(steps) - self._kept(steps):
            bucket.remove(step)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest intact checkpoint, in the structure of `state`: a state and the progress.

        `state` may hold `jax.ShapeDtypeStruct`s in place of arrays. A checkpoint that is only in
        the bucket is copied from there. No other file is changed: `tidy` sets damaged checkpoints
        aside.

        Raises:
          CheckpointError: there is none, or it belongs to another model.
        """
        self._newest, restored = self._newest_intact(lambda folder: read_state(folder, state))
        return restored

    def restore_parameters(self, model: Model, step: int | None = None) -> tuple[int, Model]:
        """A checkpoint's step, and `model` with its parameters. Files are left as by `restore`.

        Args:
          model: may hold `jax.ShapeDtypeStruct`s in place of arrays.
          step: the checkpoint's step; the newest intact checkpoint unless given.

        Raises:
          CheckpointError: there is none, it is damaged, or it belongs to another model.
        """
        return self.read(lambda folder: read_model(folder, model), step)

    def read(self, read: Callable[[Path], T], step: int | None = None) -> tuple[int, T]:
        """A checkpoint's step, and the result of `read` for its folder.

        Args:
          read: a function of `checkpoint_folder`.
          step: the checkpoint's step; the newest intact checkpoint unless given.

        Raises:
          CheckpointError: there is none, it is damaged, or `read` raises it.
        """
        if step is None:
            return self._newest_intact(read)
        steps = processes.decided(self.steps)
        if step not in steps:
            found = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint {step} in {self.directory}: found {found}"
            )
        folder = self._fetched(step)
        return step, self._checked(folder, read)

    def _checked(self, folder: Path, read: Callable[[Path], T]) -> T:
        """The result of `read` for a checkpoint. First, each process checks a part of its files."""
        part, parts = processes.index(), processes.count()
        processes.together(lambda: check_seal(folder, part, parts))
        return processes.together(lambda: read(folder))

    def tidy(self) -> None:
        """Renames the damaged checkpoints that `restore` found, and removes temporary folders.

        Only one process at a time may save or tidy in a directory.
        """
        self._set_damaged_aside()
        self._remove_leftovers()

    def _set_damaged_aside(self) -> None:
        for step in self._damaged:
            aside = self.directory / f"{DAMAGED}{step}"
            remove(aside)
            self._path(step).rename(aside)
            if self._bucket:
                with contextlib.suppress(BucketError):
                    self._bucket.own()
                    self._bucket.remove(step)
        self._damaged = []

    def _remove_leftovers(self) -> None:
        for leftover in self.leftovers():
            remove(leftover)

    def leftovers(self) -> list[Path]:
        """The temporary folders of killed processes."""
        found = list(self.directory.glob(f"*{SAVING}"))
        old = time.time() - FETCHING_SECONDS
        fetched = [
            path for path in self.directory.glob(f"{FETCHING}*") if path.stat().st_mtime < old
        ]
        return sorted(found + fetched)

    def _newest_intact(self, read: Callable[[Path], T]) -> tuple[int, T]:
        """The newest intact checkpoint's step, and the result of `read` for it."""
        damaged: dict[int, CheckpointError] = {}
        while left := self._left(damaged):
            folder = self._fetched(left[-1])
            try:
                result = self._checked(folder, read)
            except CheckpointError as error:
                if not isinstance(error, Damaged) and processes.decided(folder.is_dir):
                    raise
                damaged[left[-1]] = error
                continue
            here = processes.decided(self._steps_here)
            self._damaged = [step for step in damaged if step in here]  # not removed meanwhile
            for step in self._damaged:
                sentence = f"checkpoint {step:,} is damaged, {damaged[step]}"
                self._warn(f"{sentence}; using {left[-1]:,} instead")
            return left[-1], result
        raise CheckpointError(self._why_none(damaged))

    def _fetched(self, step: int) -> Path:
        """The folder of a checkpoint, copied from the bucket if it is only there."""
        folder = self.directory / str(step)

        def fetch() -> None:
            if self._bucket and not folder.is_dir():
                self._bucket.download(step, folder)

        processes.decided(fetch)
        return folder

    def _left(self, damaged: Collection[int]) -> list[int]:
        """The steps of the checkpoints that are not known to be damaged, oldest first."""
        return processes.decided(lambda: [step for step in self.steps() if step not in damaged])

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
    return store.read(read_parameters_of, step)[1]
