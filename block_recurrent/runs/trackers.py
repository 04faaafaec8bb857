"""Where else the metrics of a run are shown: TensorBoard, and Weights & Biases.

`training.trackers` names them. Each also gets the run's configuration. A tracker that fails is left
out from then on, with a warning, because the metrics file has all metrics.
"""

import contextlib
import json
import logging
import os
import platform
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from block_recurrent.config import ExperimentConfig
from block_recurrent.gin_files import parameter_values
from block_recurrent.system.extras import MissingPackage, require
from block_recurrent.system.files import reason, write_whole

FLUSH_SECONDS = 30
FINISH_SECONDS = 30  # for wandb to begin, and to send the rest when a run ends

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the loop needs of a tracker. Any method may raise any error."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows each number under its name."""
        ...

    def flush(self) -> None:
        """Returns when all metrics that this machine has to keep are on the disk."""
        ...

    def close(self) -> None:
        """Flushes, and ends what the tracker has begun."""
        ...


class TensorBoard:
    """TensorBoard event files through tensorboardX; the configuration is in the tab HPARAMS.

    Args:
      directory: the folder for the event files.
      parameters: the configuration, by parameter.
      step: the run continues after this step; later points are hidden.

    Raises:
      MissingPackage: tensorboardX is not installed.
      OSError: the files cannot be written; also by every method.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        parameters: Mapping[str, Any],
        *,
        step: int = 0,
    ):
        # The SummaryWriter of tensorboardX works in a thread, and hangs when that has failed.
        record_writer = require("tensorboardX.record_writer", "tensorboard")
        summary = require("tensorboardX.summary", "tensorboard")
        self._protocol = require("tensorboardX.proto.event_pb2", "tensorboard")
        self._scalar, self._flushed = summary.scalar, time.monotonic()
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}"
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._writer = record_writer.RecordWriter(os.fspath(Path(directory) / name))
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log={"status": self._protocol.SessionLog.START})
        _, begun, _ = summary.hparams({name: _shown(parameters[name]) for name in parameters}, {})
        self._add(summary=begun)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes each number under its name, and flushes from time to time."""
        for name, value in metrics.items():
            self._add(step=step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _add(self, **event: Any) -> None:
        message = self._protocol.Event(wall_time=time.time(), **event)
        self._writer.write(message.SerializeToString())

    def flush(self) -> None:
        """Returns when all metrics are on the disk."""
        self._flushed = time.monotonic()
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, which a run that is resumed continues without repeating a step.

    A thread does what may wait for the network. wandb's own settings come from its environment
    variables, such as WANDB_PROJECT and WANDB_MODE=offline. Its x axis is the metric `step`.

    Args:
      workdir: the run's directory. `wandb/run.json` in it has the id of wandb's run.
      parameters: the configuration, by parameter.
      written: the newest step of each metric in the metrics file, before it was cut back.

    Raises:
      MissingPackage: wandb is not installed.
      Exception: what wandb raised in the thread; by `write` and `close`.
    """

    def __init__(self, workdir: Path, parameters: Mapping[str, Any], written: Mapping[str, int]):
        self._wandb = require("wandb", "wandb")
        self._failure: Exception | None = None
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        run, self._sent = _continued(workdir / "wandb" / "run.json", written)
        options = {
            "project": os.environ.get("WANDB_PROJECT", "block_recurrent"),
            "name": os.environ.get("WANDB_NAME", workdir.name),
            "dir": str(workdir),
            "id": run,
            "resume": "allow",
            "config": {name: _shown(parameters[name]) for name in parameters},
            "settings": self._wandb.Settings(
                console="off",
                silent=True,
                init_timeout=FINISH_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        }
        self._thread = threading.Thread(target=self._send, args=[options], daemon=True)
        self._thread.start()

    def _send(self, options: Mapping[str, Any]) -> None:
        try:
            online = self._wandb.setup().settings.mode == "online"
            if online and not self._wandb.login(prompt=False, verify=False):
                raise PermissionError("no API key: `wandb login`, or set WANDB_MODE=offline")
            run = self._wandb.init(**options)
            run.define_metric("*", step_metric="step")
            while (line := self._lines.get()) is not None:
                # Of rows with the same step, wandb's own, and of earlier ones it takes only the
                # first, also when the run continues.
                evaluated = any(name.startswith("validation/") for name in line)
                run.log(line, step=2 * line["step"] + evaluated, commit=True)
            run.finish()
        except Exception as error:
            self._failure = error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hands over the metrics that wandb has not had yet at this step."""
        if self._failure:
            raise self._failure
        new = {name: value for name, value in metrics.items() if self._sent.get(name, -1) < step}
        if new:
            self._lines.put({"step": step, **new})

    def flush(self) -> None:
        """Does nothing: wandb writes in a process of its own."""

    def close(self) -> None:
        """Waits until wandb has sent everything, `FINISH_SECONDS` at most.

        Raises:
          TimeoutError: it has not.
        """
        self._lines.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._failure:
            raise self._failure
        if self._thread.is_alive():
            raise TimeoutError(f"not everything was sent within {FINISH_SECONDS} s")


def _continued(path: Path, written: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """The id of the run of wandb that is noted in a file, and the newest step that it has of each
    metric. Without a file it is a new run, which has none. The file is brought up to date."""
    run, sent = secrets.token_hex(4), {}
    if path.exists():
        noted = json.loads(path.read_bytes())
        run, sent = noted["id"], noted["sent"]
        sent |= {name: max(step, sent.get(name, -1)) for name, step in written.items()}
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps({"id": run, "sent": sent}) + "\n")
    return run, sent


def _shown(value: Any) -> str | int | float:
    """A value of a parameter as trackers take it: a number, a bool or text."""
    return value if isinstance(value, (str, int, float)) else repr(value)


def check_trackers(names: Sequence[str]) -> None:
    """Checks that what was asked for is there. TensorBoard, the default, may be missing.

    Raises:
      MissingPackage: it is not installed.
    """
    if "wandb" in names:
        require("wandb", "wandb")


class Trackers:
    """The trackers of a run; one that fails gets no more metrics.

    Args:
      workdir: the run's directory.
      config: the run's configuration.
      step: the run continues after this step.
      written: the newest step of each metric in the metrics file, before it was cut back.
      warn: called with a warning about a failure.
    """

    def __init__(
        self,
        workdir: Path,
        config: ExperimentConfig,
        step: int,
        written: Mapping[str, int],
        warn: Callable[[str], None],
    ):
        self._warn, self._trackers = warn, dict[str, Tracker]()
        parameters = parameter_values(config)
        for name in dict.fromkeys(config.training.trackers):
            with self._left_out_after_failure(name), contextlib.suppress(MissingPackage):
                self._trackers[name] = (
                    TensorBoard(workdir / "tensorboard", parameters, step=step)
                    if name == "tensorboard"
                    else Wandb(workdir, parameters, written)
                )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows metrics everywhere."""
        self._each(lambda tracker: tracker.write(step, metrics))

    def flush(self) -> None:
        """Returns when all metrics are on the disk, or were handed over."""
        self._each(lambda tracker: tracker.flush())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._left_out_after_failure(name):
                act(tracker)

    def close(self) -> None:
        """Closes all trackers."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            with self._left_out_after_failure(name):
                tracker.close()

    @contextlib.contextmanager
    def _left_out_after_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: the run must go on
            if tracker := self._trackers.pop(name, None):
                with contextlib.suppress(Exception):  # the same error again
                    tracker.close()
            self._warn(f"{name} gets no more metrics ({reason(error)}); the metrics file does")
