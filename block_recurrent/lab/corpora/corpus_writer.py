"""Writes the documents of a source as a directory that tensorflow-datasets reads.

The corpus grows in `<directory>.partial/corpus`, which is renamed to `<directory>` when it is
complete. A call that was stopped or killed leaves `<directory>.partial`, and the same call
continues: it keeps each finished split whose digests are right and writes the others from their
start. The result has the same bytes as that of a call that was not stopped.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from block_recurrent.data.documents import DataError, replace_lone_surrogates
from block_recurrent.data.splits import choose_split
from block_recurrent.lab.corpora import copies
from block_recurrent.lab.corpora.corpus_files import (
    MAX_RECORD,
    Examples,
    Split,
    describe,
    make_manifest,
    sha256_of,
    write_manifest,
    write_shard,
    writing,
)
from block_recurrent.lab.corpora.entries import (
    Content,
    Entry,
    Source,
    Unusable,
    listed,
    with_advice,
)
from block_recurrent.system.files import (
    PARTIAL,
    flush_folder,
    flush_to_disk,
    hold,
    put_in_place,
    remove,
    write_whole,
)
from block_recurrent.system.text import parse_json

SHARD_BYTES = 64 * 2**20
# The splits are written in this order. Of equal texts in several splits, the first one stays.
ORDER = ("test", "validation", "train")
_LOCK = "lock"
_NAMES = {_LOCK, "corpus", *(f"{split}.json" for split in ORDER)}


class Progress(NamedTuple):
    """The progress of a preparation.

    Attributes:
      split: the split that is being written; "" while the source is listed.
      documents: the number of documents read or listed, in splits that were kept too.
      total: the number of documents to read; 0 while the source is listed.
      bytes: the bytes of text written, in splits that were kept too.
    """

    split: str
    documents: int
    total: int = 0
    bytes: int = 0


def prepare(
    source: Source,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    validation_percent: int = 1,
    test_percent: int = 1,
    limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    skip_damaged: bool = False,
    deduplicate: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], object] = lambda progress: None,
) -> dict[str, Any]:
    """Writes a corpus and returns its manifest (see `make_manifest`).

    The features are those of the data set `pg19` and `source`, the document's id. `book_id` is the
    document's number where it has one, otherwise the number of documents written before it. A
    document is dropped if it has only whitespace, or if its text is also in another split: train
    loses to validation, validation to test. What is dropped is counted by reason.

    Args:
      source: gives the documents, and the splits if it has its own.
      directory: the directory of the corpus.
      name: the name of the data set, by default the source's.
      validation_percent, test_percent: shares of the documents, where the source has no splits.
      limit: at most so many documents of each split, for a trial.
      shard_bytes: a shard ends when its records have so many bytes.
      skip_damaged: drop what is damaged as "damaged" instead of raising an error; of a file of many
        documents those before the damage are kept.
      deduplicate: drop exact and near copies, see `copies`, within a split too. The first one in
        the order test, validation, train stays.
      overwrite: replace the corpus that is in the directory.
      report: called with the progress after every document. What it raises ends the preparation;
        the same call continues.

    Raises:
      DataError: an option is out of range, the directory exists or is being written, documents
        share an id, there is no document, the raw data is damaged, or a file cannot be written.
    """
    name = source.name if name is None else name
    check_options(name, validation_percent, test_percent, limit, shard_bytes)
    settings = {
        "name": name,
        "source": source.name,
        "decision": source.decision,
        "options": {
            **source.options,
            "validation_percent": validation_percent,
            "test_percent": test_percent,
            "limit": limit,
            "shard_bytes": shard_bytes,
            "skip_damaged": skip_damaged,
            "deduplicate": deduplicate and copies.SETTINGS,
        },
    }
    target = Path(os.path.abspath(directory))
    check_target(target, overwrite=overwrite)
    partial = target.with_name(target.name + PARTIAL)
    with closing(_hold(partial)):
        try:
            work = _Preparation(source, settings, partial, report)
            splits = work.splits()
        except BaseException:
            if not any(partial.glob("*.json")):
                remove(partial)
            raise
        corpus, manifest = partial / "corpus", make_manifest(settings, splits, work.left_out)
        with writing(corpus):
            describe(corpus, name, work.examples.features, splits)
            write_manifest(manifest, corpus / "manifest.json")
            flush_folder(corpus)
        with writing(target):
            _move(corpus, target)
        remove(partial)
    return manifest


def check_options(
    name: str | None,
    validation_percent: int,
    test_percent: int,
    limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Raises DataError for an option of `prepare` that is out of range."""
    if name is not None and not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise DataError(f"name = {name!r} must be of small letters, digits and _, a letter first.")
    for option, value in [("validation", validation_percent), ("test", test_percent)]:
        if value not in range(101):
            raise DataError(f"{option}_percent = {value} must be a whole number from 0 to 100.")
    if validation_percent + test_percent > 100:
        raise DataError(
            f"validation_percent = {validation_percent} and test_percent = {test_percent} are more "
            "than 100 together: lower one."
        )
    for option, value in [("limit", 1 if limit is None else limit), ("shard_bytes", shard_bytes)]:
        if value < 1:
            raise DataError(f"{option} = {value} must be at least 1.")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises DataError if no corpus can be written to this directory."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / "dataset_info.json").exists():
        raise DataError(f"{target} exists and is no corpus: choose another --output.")
    if not overwrite:
        raise DataError(
            f"{target} is a corpus already: choose another --output, or --overwrite to replace it."
        )


def _hold(partial: Path) -> BinaryIO:
    """Makes the directory of an unfinished corpus, and locks it until the result is closed."""
    names = {path.name.removesuffix(PARTIAL) for path in partial.glob("*")}
    if (partial.exists() and not partial.is_dir()) or names - _NAMES:
        raise DataError(
            f"{partial} exists and is no unfinished corpus: remove it, or choose another --output."
        )
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
        try:
            return hold(partial / _LOCK)
        except BlockingIOError as error:
            raise DataError(
                f"{partial} is being written by another process: wait for it or stop it."
            ) from error


def _move(corpus: Path, target: Path) -> None:
    """Renames the corpus; removes a corpus that is there already only when that is done."""
    old = target.with_name(target.name + ".replaced")
    remove(old)
    if target.exists():
        target.rename(old)
    put_in_place(corpus, target)
    remove(old)


class _Preparation:
    """Writes the splits of a corpus that are not finished yet.

    `settings` is all that decides the content of the corpus, as JSON values; `left_out` is complete
    after `splits`.
    """

    def __init__(
        self,
        source: Source,
        settings: Mapping[str, Any],
        partial: Path,
        report: Callable[[Progress], object],
    ):
        self._source, self._settings, self._options = source, settings, settings["options"]
        self._partial, self._corpus, self._report = partial, partial / "corpus", report
        self._split_of: dict[str, str] = {}
        self._split_of_text: dict[str, str] = {}
        self._copies = copies.Copies() if self._options["deduplicate"] else None
        self._damage: DataError | None = None
        self._read = self._kept = self._bytes = 0
        self.left_out: Mapping[str, int] = {}
        self.examples = Examples()

    def splits(self) -> list[Split]:
        """Returns what was written of every split, by this call or an earlier one."""
        percent = self._options["validation_percent"], self._options["test_percent"]
        entries = listed(self._source, skip_damaged=self._options["skip_damaged"])
        for number, entry in enumerate(entries, start=1):
            self._split_of[entry.id] = choose_split(entry.id, entry.among, *percent)
            self._report(Progress("", number))
        self.left_out = dict(self._source.left_out)
        splits: list[Split] = []
        for name in ORDER:
            if (split := self._finished(name)) is None:
                break  # what the next splits hold depends on this one
            splits.append(split)
            self._read += len(split.documents) + len(split.dropped)
            for document in split.documents:
                self._count(document)
            if self._copies is not None:
                self._copies.restore(split.signatures)
        self._clean(splits)
        splits += [self._write(name) for name in ORDER[len(splits) :]]
        if not self._kept:
            remove(self._partial)
            dropped = Counter(document["reason"] for split in splits for document in split.dropped)
            damage = f" The first damage: {self._damage}" if self._damage else ""
            raise DataError(
                f"source {self._source.name!r} gives no usable document (dropped: "
                f"{dict(dropped) or 'none'}; left out: {dict(self.left_out) or 'none'}): give "
                f"{self._source.wanted}.{damage}"
            )
        return splits

    def _identity(self, split: str) -> dict[str, Any]:
        """Returns all that decides what is in a split, as JSON values."""
        ids = [each for each, its_split in self._split_of.items() if its_split == split]
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        return json.loads(json.dumps({**self._settings, "ids": digest}))

    def _finished(self, name: str) -> Split | None:
        """Returns a split that an earlier call finished, if it is the same and undamaged."""
        try:
            split = Split(**parse_json((self._partial / f"{name}.json").read_bytes()))
            whole = all(
                sha256_of(self._corpus / shard["file"]) == shard["sha256"] for shard in split.shards
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return split if whole and split.identity == self._identity(name) else None

    def _clean(self, kept: list[Split]) -> None:
        """Removes everything but the splits that are kept."""
        names = {f"{split.name}.json" for split in kept}
        names |= {shard["file"] for split in kept for shard in split.shards}
        with writing(self._partial):
            self._corpus.mkdir(exist_ok=True)
            for path in [*self._partial.glob("*.json*"), *self._corpus.iterdir()]:
                if path.name not in names:
                    path.unlink()

    def _write(self, name: str) -> Split:
        """Writes a split from its start."""
        split, records, size = Split(name, self._identity(name)), [], 0
        limit, sizes = self._options["limit"], Counter(self._split_of.values()).values()
        total = sum(sizes if limit is None else (min(size, limit) for size in sizes))
        stem = f"{self._settings['name']}-{name}.array_record"
        entries = (e for e in self._source.entries() if self._split_of.get(e.id) == name)
        for entry in entries:
            if len(split.documents) == limit:
                break
            if record := self._record(split, entry):
                records.append(record)
                size += len(record)
                if size >= self._options["shard_bytes"]:
                    write_shard(self._corpus / f"{stem}-{len(split.shards):05d}", split, records)
                    records, size = [], 0
            self._report(Progress(name, self._read, total, self._bytes))
        if records:
            write_shard(self._corpus / f"{stem}-{len(split.shards):05d}", split, records)
        self._finish(split)
        return split

    def _record(self, split: Split, entry: Entry) -> bytes:
        """Reads a document; returns its record, or no bytes if it is dropped."""
        self._read += 1
        try:
            content = self._content(entry)
            if not content.text or content.text.isspace():
                raise Unusable("no text", content.skipped)
            data = content.text.encode()
            sha256 = hashlib.sha256(data).hexdigest()
            self._drop_copies(split, content, sha256)
        except Unusable as error:
            split.dropped.append({"id": entry.id, "reason": error.reason, "split": split.name})
            split.skipped = dict(Counter(split.skipped) + Counter(error.skipped))
            return b""
        if len(data) > MAX_RECORD:
            raise DataError(
                f"document {entry.id!r} has {len(data):,} bytes, more than the {MAX_RECORD:,} that "
                "a record holds: divide it."
            )
        record = self.examples.serialize(
            {
                "book_id": self._kept if content.number is None else content.number,
                "book_link": content.link,
                "book_text": data,
                "book_title": replace_lone_surrogates(content.title)[0],
                "publication_date": content.year,
                "source": entry.id,
            }
        )
        document = {"id": entry.id, "bytes": len(data), "sha256": sha256, "split": split.name}
        split.documents.append(document)
        split.repaired += content.repaired
        split.skipped = dict(Counter(split.skipped) + Counter(content.skipped))
        self._count(document)
        return record

    def _content(self, entry: Entry) -> Content:
        """Reads a document; if it is damaged, that drops it or is an error, as the options say."""
        try:
            return entry.read()
        except DataError as error:
            if not self._options["skip_damaged"]:
                raise with_advice(error) from error
            self._damage = self._damage or error
            raise Unusable("damaged") from error

    def _drop_copies(self, split: Split, content: Content, sha256: str) -> None:
        """Raises Unusable for a copy of a text that was written; remembers any other text."""
        other = self._split_of_text.get(sha256, split.name)
        if other != split.name:
            raise Unusable("duplicate of a document in another split", content.skipped)
        if self._copies is None:
            return
        if sha256 in self._split_of_text:
            raise Unusable("copy of another document", content.skipped)
        signature = self._copies.add(content.text)
        if signature is None:
            raise Unusable("near copy of another document", content.skipped)
        if split.name != ORDER[-1]:  # the next splits depend on it
            split.signatures.append(signature)

    def _count(self, document: Mapping[str, Any]) -> None:
        self._kept += 1
        self._bytes += document["bytes"]
        if self._copies is not None or document["split"] != ORDER[-1]:
            self._split_of_text.setdefault(document["sha256"], document["split"])

    def _finish(self, split: Split) -> None:
        """Gives the shards their final names and records the split."""
        documents = iter(split.documents)
        with writing(self._corpus):
            for shard in split.shards:
                file = f"{shard['file']}-of-{len(split.shards):05d}"
                (self._corpus / shard["file"]).rename(self._corpus / file)
                shard["file"] = file
                for document in islice(documents, shard["documents"]):
                    document["shard"] = file
            flush_to_disk(self._corpus)
            write_whole(self._partial / f"{split.name}.json", json.dumps(vars(split)))
