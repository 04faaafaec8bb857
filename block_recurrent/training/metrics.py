"""Where figures go: JSON lines in the work directory, and TensorBoard if it is installed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from block_recurrent.files import write_whole
from block_recurrent.training.digests import CheckpointError


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

    def figure(self, step: int, name: str) -> float | None:
        """A figure in the last line, or None if that is of another step or does not have it."""
        return self._last.get(name) if self._last and self._last["step"] == step else None

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Appends a line, unless it is the last one again."""
        line = {"step": step, **figures}
        if line != self._last:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._last = line


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
        figures = json.loads(line)
        figures["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged ({error}): remove that line") from error
    return figures


class TensorBoard:
    """TensorBoard event files through tensorboardX; does nothing where that is not installed.

    Args:
      directory: of the event files.
      step: the run continues after this step; later points are hidden.
    """

    def __init__(self, directory: str | os.PathLike[str], *, step: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(os.fspath(directory), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Writes each number under its name."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes what has been written."""
        if self._writer is not None:
            self._writer.close()
