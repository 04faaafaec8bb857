"""Loading one split of a corpus into memory, with counts of what was dropped or repaired."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from block_recurrent.config import Download
from block_recurrent.data.documents import SPLITS, DataError, Document
from block_recurrent.data.sources import SOURCES, SplitReader
from block_recurrent.data.splits import BY_HASH
from block_recurrent.data.text_files import AS_PUBLISHED, Reading
from block_recurrent.system.hints import must_be_one_of
from block_recurrent.system.text import count_reasons


@dataclass(frozen=True)
class Corpus:
    """The documents of one split.

    Attributes:
      documents: the documents. `load_corpus` sorts them by id.
      origin: the source, split and path of the documents, for messages.
      dropped: what was left out, as reason -> number of files or documents.
      repaired: number of files or records read whose text was not valid UTF-8.
      decision: a line for people: how the splits were decided; may be empty.
    """

    documents: tuple[Document, ...]
    origin: str = "corpus"
    dropped: Mapping[str, int] = field(default_factory=dict)
    repaired: int = 0
    decision: str = ""

    def account(self) -> str:
        """Returns lines for people: how splits were decided, and what was dropped or repaired."""
        dropped = count_reasons(self.dropped)
        line = f"dropped: {dropped}; repaired, with invalid UTF-8: {self.repaired:,}"
        return "\n".join(filter(None, (self.decision, line)))


def load_corpus(
    source: str,
    split: str,
    *,
    path: str | os.PathLike[str] | None = None,
    validation_percent: int = 10,
    reading: Reading = AS_PUBLISHED,
    download: Download = "never",
) -> Corpus:
    """Loads the documents of one split, sorted by id: the same call gives the same corpus.

    The sources:
      stdlib: the standard library of the running interpreter, or the one in the directory
        `path`. One document per top-level package or module; a package's `*.py` files are joined
        by newlines, depth first, each folder's files in sorted order before its subfolders.
        Folders called test, tests or idle_test, caches, and names that are no Python identifier
        (site-packages and build-specific files) are not read, at any depth.
      site_packages: the same for the packages installed for the running interpreter, or in the
        directory `path`.
      text, jsonl: the files that `TextFiles` finds at `path`, a file or a directory: every text
        file is a document, and so is every record of JSON, CSV, Parquet and Arrow files. The id of
        a text file is its relative POSIX path.
      huggingface: the rows of the data set that `HubDataset` finds at `path`, a folder or a name.

    The names of files and folders decide the split of a document (`decide_splits`), or else its id
    does (`split_of`).

    Text is decoded as UTF-8 and otherwise left as it is, line ends included. Invalid bytes and
    lone surrogates become U+FFFD, and the file or record counts as repaired. Documents without
    a character other than whitespace, and files that cannot be read, are dropped and counted by
    reason. A damaged or ill-formed file of records is an error.

    Args:
      source: "stdlib", "site_packages", "jsonl", "text" or "huggingface".
      split: "train", "validation" or "test".
      path: file or directory to read; all but the first two need one.
      validation_percent: share of the documents for validation, 0 to 99.
      reading: how files are read.
      download: what a Hugging Face data set may download: "never", "cache" or "stream".

    Raises:
      DataError: the source or split is unknown, the path is missing or unsuitable, the splits are
        not clear, a record has no text, an id occurs twice, a file is damaged, the percentage is
        out of range, or the split has no documents.
    """
    for what, name, known in (("source", source, SOURCES), ("split", split, SPLITS)):
        if name not in known:
            raise DataError(f"{what} {must_be_one_of(known, name)}.")
    if validation_percent not in range(100):
        raise DataError(
            f"validation_percent = {validation_percent} must be a whole number from 0 to 99."
        )
    if path is not None and source != "huggingface" and not os.path.exists(path):
        raise DataError(f"path {os.fspath(path)!r} does not exist: correct it or create it first.")
    reader = SplitReader(split, validation_percent, reading, download)
    read = SOURCES[source](None if path is None else Path(path), reader)
    kept = []
    for document in read:
        if document.text and not document.text.isspace():
            kept.append(document)
        else:
            reader.dropped["empty"] += 1
    origin = f"{source} {split}" if path is None else f"{source} {split} ({os.fspath(path)})"
    if not kept:
        raise DataError(f"{origin} holds {_why_none(reader)}")
    dropped = dict(reader.dropped)
    return Corpus(tuple(sorted(kept)), origin, dropped, reader.repaired, reader.decision)


def _why_none(reader: SplitReader) -> str:
    dropped = count_reasons(reader.dropped)
    if not reader.found:
        return f"no documents (dropped: {dropped}): point path at a corpus."
    way_out, buckets = "add documents.", reader.buckets
    if reader.split != "test" and len(buckets) > 1 and not reader.dropped["empty"]:
        percent = min(buckets) + 1 if reader.split == "validation" else max(buckets)
        way_out = f"set data.validation_percent = {percent}, or add documents."
    if "by the names" in reader.decision:
        way_out = f"{reader.decision}; {BY_HASH}."
    return f"none of the {reader.found:,} documents found (dropped: {dropped}): {way_out}"
