"""Where metrics go: JSON lines in the work directory, and TensorBoard if it is installed."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.runs.errors import CheckpointError
from block_recurrent.system.files import flush_to_disk, reason, write_whole

METRICS = "metrics.jsonl"  # in the work directory
FLUSH_SECONDS = 30


class MetricsFile:
    """Lines of JSON, each with the step it belongs to.

    Args:
      path: of the file, created if need be.
      step: the run continues after this step; later lines, written by a run that was cut off, are
        removed.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int = 0):
        self._path = Path(path)
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._last = kept[-1] if kept else None

    def metric(self, step: int, name: str) -> float | None:
        """A metric in the last line, or None if that is of another step or does not have it."""
        return self._last.get(name) if self._last and self._last["step"] == step else None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line, unless it is the last one again; a whole one or, with an error, none."""
        line = {"step": step, **metrics}
        if line != self._last:
            self._append(json.dumps(line) + "\n")
        self._last = line

    def _append(self, text: str) -> None:
        size = None
        try:
            with self._path.open("a") as file:
                size = file.tell()
                file.write(text)
        except OSError:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self._path, size)
            raise

    def flush(self) -> None:
        """Returns when all lines are on the disk."""
        flush_to_disk(self._path)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; none if there is no file.

    Raises:
      CheckpointError: a line before the last is damaged.
    """
    if not os.path.exists(path):
        return []
    lines = Path(path).read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        metrics = json.loads(line)
        metrics["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged ({error}): remove that line") from error
    return metrics


class TensorBoard:
    """TensorBoard event files through tensorboardX; does nothing where that is not installed.

    Nor does it after a failure: the metrics are in the metrics file as well.

    Args:
      directory: of the event files.
      step: the run continues after this step; later points are hidden.
      warn: takes a sentence about a failure.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        step: int = 0,
        warn: Callable[[str], None] = lambda sentence: None,
    ):
        self._directory, self._warn = Path(directory), warn
        self._writer, self._flushed = None, time.monotonic()
        # Its own SummaryWriter works in a thread, and waits for ever where that has failed.
        with contextlib.suppress(ImportError):
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2

            self._protocol: Any = event_pb2
            self._scalar = summary.scalar
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}"
            with self._giving_up():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._writer = record_writer.RecordWriter(os.fspath(self._directory / name))
                self._add(file_version="brain.Event:2")
                self._add(step=step + 1, session_log={"status": self._protocol.SessionLog.START})

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes each number under its name."""
        if self._writer is not None:
            with self._giving_up():
                for name, value in metrics.items():
                    self._add(step=step, summary=self._scalar(name, value))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def _add(self, **event: Any) -> None:
        assert self._writer is not None
        message = self._protocol.Event(wall_time=time.time(), **event)
        self._writer.write(message.SerializeToString())

    def flush(self) -> None:
        """Returns when all metrics are on the disk."""
        self._flushed = time.monotonic()
        if self._writer is not None:
            with self._giving_up():
                self._writer.flush()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.close()
            self._writer = None
            self._warn(f"TensorBoard gets no more figures: {self._directory} ({reason(error)})")

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
