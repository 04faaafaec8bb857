"""What a run leaves in its work directory: checkpoints and figures, also where that fails."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.runs.checkpoints import Checkpoints, SaveFailed
from block_recurrent.runs.digests import reason
from block_recurrent.runs.metrics import METRICS, MetricsFile, TensorBoard
from block_recurrent.training.step import TrainState

MOST_FAILED_SAVES = 3


class Records:
    """Checkpoints and figures of a run that continues after a step.

    Args:
      workdir: of the run.
      step: figures of later ones are removed.
      checkpoints: of the run; closed by `close`.
      warn: takes a sentence about what failed and does not end the run.

    Raises:
      SaveFailed: the figures before the step cannot be written anew.
      CheckpointError: they are damaged.
    """

    def __init__(
        self, workdir: Path, step: int, checkpoints: Checkpoints, warn: Callable[[str], None]
    ):
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._warn = warn
        with self._writing(step):
            self._metrics = MetricsFile(workdir / METRICS, step=step)
        self._board = TensorBoard(workdir / "tensorboard", step=step, warn=warn)

    def figure(self, step: int, name: str) -> float | None:
        """A figure of the last line of metrics, as of `MetricsFile.figure`."""
        return self._metrics.figure(step, name)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes figures wherever they go.

        Raises:
          SaveFailed: they cannot be written.
        """
        try:
            self._metrics.write(step, figures)
        except OSError:
            self._checkpoints.settle()  # what is being saved may have taken all room for a while
            with self._writing(step):
                self._metrics.write(step, figures)
        self._board.write(step, figures)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveFailed(
                f"the figures of step {step:,} could not be written to {self._workdir} "
                f"({reason(error)}); {self.newest('newest checkpoint')}"
            ) from error

    def save(
        self,
        state: TrainState,
        progress: Mapping[str, Any],
        *,
        loss: float | None = None,
        last: bool = False,
    ) -> None:
        """Begins to save a checkpoint when all figures, and the one before it, are on the disk.

        Args:
          state, progress, loss: as of `Checkpoints.save`.
          last: there will be no other attempt.

        Raises:
          SaveFailed: several saves in a row have failed, and this is not the last attempt.
        """
        self._flush()
        self._checkpoints.settle()
        failures = self._checkpoints.failures
        if len(failures) >= MOST_FAILED_SAVES and not last:
            raise failures[-1]
        self._checkpoints.save(state, progress, loss=loss)

    def _flush(self) -> None:
        self._board.flush()
        try:
            self._metrics.flush()
        except OSError as error:
            self._warn(f"figures may be lost: {self._workdir / METRICS} ({reason(error)})")

    def newest(self, name: str) -> str:
        """Which step's the newest checkpoint is, in words that call it `name`."""
        step = self._checkpoints.latest_step()
        return f"there is no {name}" if step is None else f"the {name} is that of step {step:,}"

    def close(self) -> None:
        """Closes files and threads; what fails here is a warning, lest it hide why a run failed."""
        self._checkpoints.settle()
        self._checkpoints.close()
        self._board.close()
