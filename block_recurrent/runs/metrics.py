"""Metrics: JSON lines in the work directory, and TensorBoard if it is installed."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.runs.errors import RunError
from block_recurrent.system.files import flush_to_disk, reason, write_whole

METRICS = "metrics.jsonl"  # in the work directory
FLUSH_SECONDS = 30


class MetricsFile:
    """Lines of JSON, each with the step it belongs to.

    Args:
      path: the file, created if necessary.
      step: the run continues after this step. Later lines, which a run wrote that was cut off, are
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
        """Appends a line, unless it equals the last one. An error leaves no part of the line."""
        line = {"step": step, **metrics}
        if line != self._last:
            self._append(json.dumps(line) + "\n")
        self._last = line

    def _append(self, text: str) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)
            raise

    def flush(self) -> None:
        """Returns when all lines are on the disk."""
        flush_to_disk(self._path)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; none if there is no file. Raises: as `read_lines`."""
    return [line for _, line in read_lines(Path(path))]


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every whole line of a metrics file with its place, "file:line"; none without a file.

    Raises:
      RunError: a line is not a JSON object with a step.
    """
    if not path.exists():
        return []
    found = []
    lines = path.read_bytes().split(b"\n")[:-1]  # the last one is still being written, or empty
    for number, text in enumerate(lines, 1):
        place = f"{path}:{number}"
        line = read_object(text, place)
        number_in(line, "step", place)
        found.append((place, line))
    return found


def read_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a text. Raises RunError, which begins with `where`, if it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:  # also of other encodings
        raise RunError(
            f"{where}: not JSON ({reason(error)}); the file is damaged: mend or remove this line"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, not {value!r}")
    return value


def number_in(line: Mapping[str, Any], name: str, where: str) -> float:
    """A number in a JSON object. Raises RunError, which begins with `where`, if it is none."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RunError(f"{where}: {name!r} must be a number, not {value!r}")
    return value


class TensorBoard:
    """TensorBoard event files through tensorboardX; does nothing where that is not installed.

    It does nothing after a failure either, because the metrics file has all metrics.

    Args:
      directory: the folder for the event files.
      step: the run continues after this step; later points are hidden.
      warn: called with a warning about a failure.
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
        # The SummaryWriter of tensorboardX works in a thread, and hangs when that has failed.
        with contextlib.suppress(ImportError), self._disabled_by_failure():
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2

            self._protocol: Any = event_pb2
            self._scalar = summary.scalar
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}"
            self._directory.mkdir(parents=True, exist_ok=True)
            self._writer = record_writer.RecordWriter(os.fspath(self._directory / name))
            self._add(file_version="brain.Event:2")
            self._add(step=step + 1, session_log={"status": self._protocol.SessionLog.START})

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes each number under its name."""
        if self._writer is not None:
            with self._disabled_by_failure():
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
            with self._disabled_by_failure():
                self._writer.flush()

    @contextlib.contextmanager
    def _disabled_by_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.close()
            self._writer = None
            self._warn(f"TensorBoard gets no more metrics: {self._directory} ({reason(error)})")

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
