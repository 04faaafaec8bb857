"""What has been finished of a corpus: the directory `<corpus>.partial` and its journal.

The journal is a file of JSON lines: first the settings, then one line for every finished shard,
written when the shard is safe on disk. What the journal does not know of is thrown away.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from block_recurrent.data.errors import DataError
from block_recurrent.lab.corpora.portions import Portion, Shard
from block_recurrent.system.lock import hold

_JOURNAL = "journal.jsonl"


class Partial:
    """The directory in which a corpus grows, held by one process at a time.

    Attributes:
      corpus: the directory of the shards.
      portions: the portions that have been finished, now or by earlier calls.

    Args:
      path: the directory; made if it is not there.
      settings: all that decides the content, as JSON values.
      restart: throw away what is there.

    Raises:
      DataError: if it was begun with other settings, is in use, or is another directory.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False):
        self._path, self.corpus = path, path / "corpus"
        self.portions: list[Portion] = []
        _check_ours(path)
        restart = restart or not self.corpus.exists()  # complete, and moved to its place
        self.corpus.mkdir(parents=True, exist_ok=True)
        self._file = self._hold_journal()
        try:
            lines = [] if restart else self._lines()
            if len(lines) > 1:
                _check_same(path, lines[0], json.loads(json.dumps(settings)))
                self.portions = [_portion(line) for line in lines[1:]]
            else:
                self._file.truncate(0)
                self._append(settings)
            self._clean()
        except BaseException:
            self._file.close()
            raise

    def append(self, portion: Portion) -> None:
        """Notes what has been finished, for good."""
        self._append(dataclasses.asdict(portion))
        self.portions.append(portion)

    def close(self) -> None:
        """Lets go of the directory, which stays if a shard is finished."""
        if not any(portion.shard for portion in self.portions):
            self.remove()
        self._file.close()

    def remove(self) -> None:
        """Removes what is left of the directory."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _hold_journal(self) -> BinaryIO:
        try:
            return hold(self._path / _JOURNAL)
        except BlockingIOError as error:
            raise DataError(
                f"{self._path} is being written by another process: wait for it or stop it."
            ) from error

    def _lines(self) -> list[Any]:
        """The whole lines; a torn last one, left by a crash, is cut off."""
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise DataError(
                f"{self._path / _JOURNAL} is damaged ({error}): start afresh with --restart."
            ) from error

    def _append(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _clean(self) -> None:
        """Removes files that no journal line names, and sees that those named are there."""
        shards = {portion.shard.file: portion.shard for portion in self.portions if portion.shard}
        found = {}
        for file in self.corpus.iterdir():
            name = file.name.partition("-of-")[0]
            if name in shards:
                found[name] = file.stat().st_size
            else:
                file.unlink()
        for name, shard in shards.items():
            if found.get(name) != shard.size:
                raise DataError(
                    f"{self.corpus / name} is missing or not as it was written: start afresh with "
                    "--restart."
                )


def _portion(line: dict[str, Any]) -> Portion:
    shard = line.pop("shard")
    return Portion(**line, shard=Shard(**shard) if shard else None)


def _check_ours(path: Path) -> None:
    """A directory that did not come from here is not to be touched."""
    if path.is_dir() and not (path / _JOURNAL).exists() and any(path.iterdir()):
        raise DataError(
            f"{path} exists and is no half-written corpus: remove it, or choose another --output."
        )


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then, asked = _flat(before), _flat(now)
    changes = [
        f"{name} = {json.dumps(then.get(name))}, now {json.dumps(asked.get(name))}"
        for name in sorted(then.keys() | asked.keys())
        if then.get(name) != asked.get(name)
    ]
    if changes:
        raise DataError(
            f"{path} was begun with {'; '.join(changes)}: give the options of then to go on, or "
            "--restart to throw it away and start afresh."
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the options among them."""
    rest = {name: value for name, value in settings.items() if name != "options"}
    return rest | settings["options"]
