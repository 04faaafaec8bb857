"""The portion of a split that is read for one shard: while it grows, and when it is finished."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.lab.corpora.entries import Content
from block_recurrent.lab.corpora.shards import ShardWriter


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file of records.

    Attributes:
      file: its name, without the number of shards.
      size: size of the file in bytes.
      record_bytes: sum of the records' sizes in bytes.
      sha256: SHA-256 of the file in hexadecimal.
    """

    file: str
    size: int
    record_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Portion:
    """The documents read for one shard; the last portion of a split may have none to write.

    Attributes:
      split: the split to which it belongs.
      listing: SHA-256 of the ids that the source lists for the split.
      last: whether the split ends with it.
      read: what was read, in order: `{"id", "bytes", "sha256"}` of a document, `{"id", "reason"}`
        of one that was dropped.
      skipped: parts of documents that were left out, as reason -> number.
      repaired: number of documents whose text was not valid in its encoding.
      shard: the file that has the documents; None where there are none.
    """

    split: str
    listing: str
    last: bool
    read: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, int]
    repaired: int
    shard: Shard | None

    def kept(self) -> list[Mapping[str, Any]]:
        """The documents that were written."""
        return [document for document in self.read if "reason" not in document]


class OpenPortion:
    """A portion that grows, and its shard, which is begun with the first document.

    Attributes:
      split: the split to which it belongs.
      kept: number of documents written.
      record_bytes: sum of their records' sizes.
    """

    def __init__(self, split: str, path: Path):
        self.split, self.kept, self.record_bytes = split, 0, 0
        self._path, self._repaired = path, 0
        self._shard: ShardWriter | None = None
        self._read: list[dict[str, Any]] = []
        self._skipped: Counter[str] = Counter()

    def drop(self, document_id: str, reason: str, skipped: Mapping[str, int]) -> dict[str, Any]:
        """Notes a document that is left out, and returns the note."""
        self._read.append({"id": document_id, "reason": reason})
        self._skipped.update(skipped)
        return self._read[-1]

    def write(self, record: bytes) -> None:
        """Adds a record to the shard."""
        if self._shard is None:
            self._shard = ShardWriter(self._path)
        self._shard.write(record)
        self.record_bytes += len(record)

    def keep(self, document: dict[str, Any], content: Content) -> dict[str, Any]:
        """Notes a document that was written, and returns the note."""
        self.kept += 1
        self._read.append(document)
        self._skipped.update(content.skipped)
        self._repaired += content.repaired
        return document

    def close(self, listing: str, *, last: bool) -> Portion:
        """Returns the portion, of a split with that listing, when its shard is safe on disk."""
        shard = None
        if self._shard is not None:
            sha256 = self._shard.close()
            size = self._path.stat().st_size
            shard = Shard(self._path.name, size, self.record_bytes, sha256)
        skipped = dict(self._skipped)
        return Portion(self.split, listing, last, self._read, skipped, self._repaired, shard)

    def discard(self) -> None:
        """Throws the shard away."""
        if self._shard is not None:
            self._shard.discard()
