"""One pass over a source: from where the finished shards end to the last document."""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from block_recurrent.data.documents import split_of
from block_recurrent.data.errors import DataError
from block_recurrent.data.utf8 import replace_lone_surrogates
from block_recurrent.lab.corpora.entries import Content, Entry, Source, Unusable
from block_recurrent.lab.corpora.journal import Partial
from block_recurrent.lab.corpora.portions import OpenPortion, Portion
from block_recurrent.lab.corpora.shards import Examples, shard_name, writing

# Of documents that are in several splits, those for evaluation stay where they are.
ORDER = ("test", "validation", "train")


class Interrupted(Exception):
    """The caller asked to stop; the same call goes on."""


class Progress(NamedTuple):
    """How far a preparation is.

    Attributes:
      split: the split that is being written; "" while the source is listed.
      documents: documents read or listed, by earlier calls too.
      total: documents to read; 0 while the source is listed.
      bytes: bytes of text written, by earlier calls too.
      new_documents: documents read by this call.
      new_bytes: bytes of text written by this call.
      seconds: how long this call has been writing.
    """

    split: str
    documents: int
    total: int
    bytes: int = 0
    new_documents: int = 0
    new_bytes: int = 0
    seconds: float = 0.0


class Pass:
    """Writes what is missing in `partial`.

    Attributes:
      examples: serializes the records.
      left_out: what the source left out when it was listed, as reason -> number.

    Args:
      source: gives the documents.
      settings: name and options of the corpus.
      partial: takes the finished shards.
      report: called with the progress after every document.
      stop: asked after every document; if it says so, Interrupted is raised.
    """

    def __init__(
        self,
        source: Source,
        settings: Mapping[str, Any],
        partial: Partial,
        report: Callable[[Progress], object],
        stop: Callable[[], object],
    ):
        self._source, self._partial = source, partial
        self._name, self._options = settings["name"], settings["options"]
        self._report, self._stop = report, stop
        self._listing: dict[str, list[str]] = {split: [] for split in ORDER}
        self._digests: dict[str, str] = {}
        self.left_out: Mapping[str, int] = {}
        self.examples = Examples()
        self._split_of_text: dict[str, str] = {}
        self._read = self._kept = self._bytes = 0
        for portion in partial.portions:
            self._count(portion.split, portion.read)
        self._before = self._read, self._bytes
        self._started = time.monotonic()

    def run(self) -> None:
        """Lists the source and writes what is missing of every split.

        Raises:
          DataError: documents share an id, the raw data changed, or no document is usable.
          Interrupted: `stop` says so.
        """
        self._list()
        self._started = time.monotonic()
        for split in ORDER:
            self._write_split(split)
        if not self._kept:
            read = (document for portion in self._partial.portions for document in portion.read)
            dropped = Counter(document["reason"] for document in read)
            raise DataError(
                f"source {self._source.name!r} gives no usable document (dropped: "
                f"{dict(dropped) or 'none'}; left out: {dict(self.left_out) or 'none'}): give "
                f"{self._source.wanted}."
            )

    def needed(self) -> int:
        """Bytes that are still to be written, estimated from those written so far."""
        mean = self._bytes / self._read if self._read else 0
        return max(round(mean * (self._total() - self._read)), self._options["shard_bytes"])

    def _list(self) -> None:
        seen: dict[str, int] = {}
        for number, entry in enumerate(self._source.entries(), start=1):
            if (first := seen.setdefault(entry.id, number)) != number:
                raise DataError(
                    f"source {self._source.name!r}: the documents {first:,} and {number:,} that it "
                    f"lists share the id {entry.id!r}: remove or rename one."
                )
            if replace_lone_surrogates(entry.id)[1]:
                raise DataError(f"document id {entry.id!r} cannot be written as UTF-8: rename it.")
            self._listing[self._split_of(entry)].append(entry.id)
            self._report(Progress("", number, 0))
            self._check_stop()
        self.left_out = dict(self._source.left_out)
        for split, ids in self._listing.items():
            self._digests[split] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    def _split_of(self, entry: Entry) -> str:
        percent = self._options["validation_percent"], self._options["test_percent"]
        return entry.split or split_of(entry.id, *percent)

    def _write_split(self, split: str) -> None:
        portions = [portion for portion in self._partial.portions if portion.split == split]
        if any(portion.listing != self._digests[split] for portion in portions):
            raise DataError(
                f"the documents of {split} are not those that an earlier call found: bring the raw "
                "data back, or start afresh with --restart."
            )
        entries = (entry for entry in self._source.entries() if self._split_of(entry) == split)
        rest = itertools.islice(entries, sum(len(portion.read) for portion in portions), None)
        while not (portions and portions[-1].last):
            portions.append(self._write_shard(split, portions, rest))

    def _write_shard(self, split: str, before: list[Portion], entries: Iterator[Entry]) -> Portion:
        """Writes the next shard of a split."""
        index = sum(portion.shard is not None for portion in before)
        room = self._room(before)
        portion = OpenPortion(split, self._partial.corpus / shard_name(self._name, split, index))
        try:
            while portion.record_bytes < self._options["shard_bytes"] and portion.kept < room:
                if (entry := next(entries, None)) is None:
                    break
                self._add(portion, entry)
            full = portion.record_bytes >= self._options["shard_bytes"]
            closed = portion.close(self._digests[split], last=not full)
        except BaseException:
            portion.discard()
            raise
        with writing(self._partial.corpus.parent):
            self._partial.append(closed)
        return closed

    def _room(self, before: list[Portion]) -> float:
        """How many more documents the limit lets into a split."""
        kept = sum(len(portion.kept()) for portion in before)
        limit = self._options["limit"]
        return float("inf") if limit is None else limit - kept

    def _add(self, portion: OpenPortion, entry: Entry) -> None:
        try:
            content = entry.read()
        except Unusable as error:
            document = portion.drop(entry.id, error.reason, error.skipped)
        else:
            document = self._keep_or_drop(portion, entry.id, content)
        self._count(portion.split, [document])
        self._report(self._progress(portion.split))
        self._check_stop()

    def _keep_or_drop(self, portion: OpenPortion, document_id: str, content: Content) -> Any:
        if not content.text or content.text.isspace():
            return portion.drop(document_id, "no text", content.skipped)
        data = content.text.encode()
        sha256 = hashlib.sha256(data).hexdigest()
        if self._split_of_text.get(sha256, portion.split) != portion.split:
            reason = "duplicate of a document in another split"
            return portion.drop(document_id, reason, content.skipped)
        values = {
            "book_id": self._kept if content.number is None else content.number,
            "book_link": content.link,
            "book_text": data,
            "book_title": replace_lone_surrogates(content.title)[0],
            "publication_date": content.year,
            "source": document_id,
        }
        portion.write(self.examples.serialize(values))
        return portion.keep({"id": document_id, "bytes": len(data), "sha256": sha256}, content)

    def _count(self, split: str, documents: Any) -> None:
        for document in documents:
            self._read += 1
            if "reason" not in document:
                self._kept += 1
                self._bytes += document["bytes"]
                if split != ORDER[-1]:
                    self._split_of_text.setdefault(document["sha256"], split)

    def _total(self) -> int:
        limit = self._options["limit"]
        sizes = [len(ids) for ids in self._listing.values()]
        return sum(sizes if limit is None else (min(size, limit) for size in sizes))

    def _progress(self, split: str) -> Progress:
        new = self._read - self._before[0], self._bytes - self._before[1]
        seconds = time.monotonic() - self._started
        return Progress(split, self._read, self._total(), self._bytes, *new, seconds)

    def _check_stop(self) -> None:
        if self._stop():
            raise Interrupted
