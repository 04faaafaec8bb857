"""Metrics: JSON lines in the work directory."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from block_recurrent.runs.errors import RunError
from block_recurrent.system.files import flush_to_disk, reason, write_whole
from block_recurrent.system.text import parse_json

METRICS = "metrics.jsonl"  # in the work directory


class MetricsFile:
    """Lines of JSON, each with the step it belongs to.

    Args:
      path: the file, created if necessary.
      step: the run continues after this step. Later lines, which a run wrote that was cut off, are
        removed.

    Attributes:
      written: the newest step of each metric that the file had, removed lines included.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int = 0):
        self._path = Path(path)
        lines = read_metrics(self._path)
        self.written = {name: int(line["step"]) for line in lines for name in line}
        kept = [line for line in lines if line["step"] <= step]
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
        value = parse_json(text)
    except ValueError as error:
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
