"""What a run records besides checkpoints: its launches, its metrics, and how it ended."""

import contextlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from block_recurrent.config import ExperimentConfig
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.errors import SaveFailed
from block_recurrent.runs.metrics import METRICS, MetricsFile
from block_recurrent.runs.trackers import Trackers
from block_recurrent.system.files import reason, write_whole

LAUNCHES, SUMMARY = "launches.jsonl", "summary.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "block_recurrent")


class Records:
    """The metrics of a run, and the summary of how it ended.

    Args:
      workdir: the run's directory.
      config: the run's configuration.
      step: the run continues after this step; metrics of later steps are removed.
      checkpoints: the run's checkpoints.
      warn: called with a warning about a failure that does not end the run.

    Raises:
      SaveFailed: the metrics file cannot be written.
      RunError: it is damaged.
    """

    def __init__(
        self,
        workdir: Path,
        config: ExperimentConfig,
        step: int,
        checkpoints: Checkpoints,
        warn: Callable[[str], None],
    ):
        self._workdir, self._first_step = workdir, step
        self._checkpoints, self._warn = checkpoints, warn
        with self._writing(step):
            self._metrics = MetricsFile(workdir / METRICS, step=step)
        self._trackers = Trackers(workdir, config, step, self._metrics.written, warn)

    def metric(self, step: int, name: str) -> float | None:
        """A metric in the last line, or None if that is of another step or does not have it."""
        return self._metrics.metric(step, name)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics to the file and to the trackers.

        Raises:
          SaveFailed: they cannot be written.
        """
        try:
            self._metrics.write(step, metrics)
        except OSError:
            self._checkpoints.settle()  # a save in progress may use all space for a while
            with self._writing(step):
                self._metrics.write(step, metrics)
        self._trackers.write(step, metrics)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveFailed(
                f"the figures of step {step:,} could not be written to {self._workdir} "
                f"({reason(error)}); {self._checkpoints.describe_newest('newest checkpoint')}"
            ) from error

    def flush(self) -> None:
        """Returns when all metrics are on the disk. A failure is only a warning."""
        self._trackers.flush()
        try:
            self._metrics.flush()
        except OSError as error:
            self._warn(f"figures may be lost: {self._workdir / METRICS} ({reason(error)})")

    def summarize(self, outcome: str, step: int, times: Mapping[str, Any]) -> None:
        """Writes `summary.json`, if possible.

        Args:
          outcome: how the run ended.
          step: number of steps taken.
          times: JSON values that say where the time went.
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
        """Closes the trackers."""
        self._trackers.close()


def record_launch(workdir: Path) -> None:
    """Appends to `launches.jsonl` what is running: command, versions, commit and devices."""
    launch = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "host": {"system": platform.platform(), "name": platform.node()},
    }
    with (workdir / LAUNCHES).open("a") as file:
        file.write(json.dumps(launch) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the program's own repository, marked where files differ from it."""
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
