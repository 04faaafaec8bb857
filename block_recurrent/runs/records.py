"""The metrics of a run, wherever they go, and the summary of what it did."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import SaveFailed
from block_recurrent.runs.metrics import METRICS, MetricsFile, TensorBoard
from block_recurrent.system.files import reason, write_whole

SUMMARY = "summary.json"


class Records:
    """The metrics of a run that continues after a step.

    Args:
      workdir: of the run.
      step: metrics of later ones are removed.
      checkpoints: of the run.
      warn: takes a sentence about what failed and does not end the run.

    Raises:
      SaveFailed: the metrics before the step cannot be written anew.
      CheckpointError: they are damaged.
    """

    def __init__(
        self, workdir: Path, step: int, checkpoints: Checkpoints, warn: Callable[[str], None]
    ):
        self._workdir = workdir
        self._first_step = step
        self._checkpoints = checkpoints
        self._warn = warn
        with self._writing(step):
            self._metrics = MetricsFile(workdir / METRICS, step=step)
        self._board = TensorBoard(workdir / "tensorboard", step=step, warn=warn)

    def metric(self, step: int, name: str) -> float | None:
        """A metric in the last line, or None if that is of another step or does not have it."""
        return self._metrics.metric(step, name)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics wherever they go.

        Raises:
          SaveFailed: they cannot be written.
        """
        try:
            self._metrics.write(step, metrics)
        except OSError:
            self._checkpoints.settle()  # what is being saved may have taken all room for a while
            with self._writing(step):
                self._metrics.write(step, metrics)
        self._board.write(step, metrics)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            newest = self._checkpoints.describe_newest("newest checkpoint")
            raise SaveFailed(
                f"the figures of step {step:,} could not be written to {self._workdir} "
                f"({reason(error)}); {newest}"
            ) from error

    def flush(self) -> None:
        """Returns when all metrics are on the disk; that they are not is a warning."""
        self._board.flush()
        try:
            self._metrics.flush()
        except OSError as error:
            self._warn(f"figures may be lost: {self._workdir / METRICS} ({reason(error)})")

    def summarize(self, outcome: str, step: int, times: Mapping[str, Any]) -> None:
        """Writes `summary.json`, if it can be written.

        Args:
          outcome: how the run ended.
          step: how many have been taken.
          times: where the time went, as JSON values.
        """
        summary = {
            "outcome": outcome,
            "first_step": self._first_step,
            "last_step": step,
            **times,
            "latest_checkpoint": self._checkpoints.latest_step(),
            "best_checkpoint": self._checkpoints.best_step(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with contextlib.suppress(OSError):
            write_whole(self._workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Closes the files."""
        self._board.close()
