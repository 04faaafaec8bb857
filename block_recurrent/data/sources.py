"""Where documents come from: Python packages, and files of text or records.

A source is a function `(path, reader) -> documents`. It asks the reader which ids belong to the
split, has it read the files of those, and has it count what had to be dropped or repaired.
"""

import os
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from block_recurrent.config import Download
from block_recurrent.data.documents import SPLITS, DataError, Document, bucket_of, decode_file
from block_recurrent.data.huggingface import HubDataset
from block_recurrent.data.splits import choose_split
from block_recurrent.data.text_files import (
    AS_PUBLISHED,
    Reading,
    Record,
    TextFile,
    TextFiles,
    joined,
)

_NOT_READ = frozenset({"test", "tests", "idle_test", "__pycache__"})


@dataclass
class SplitReader:
    """Reads the documents of one split, and counts what it finds and what it drops.

    Attributes:
      split: "train" or "validation".
      validation_percent: share of the documents that `split_of` gives to validation.
      reading: how files are read.
      download: what a Hugging Face data set may download, see `HubDataset`.
      found: documents met, of every split.
      buckets: what `bucket_of` says of those whose split a hash decides.
      repaired: files or records read whose text was not valid UTF-8.
      dropped: what was left out, as reason -> number of files or documents.
      decision: a line for people: how the splits were decided.
    """

    split: str
    validation_percent: int
    reading: Reading = AS_PUBLISHED
    download: Download = "never"
    found: int = 0
    buckets: set[int] = field(default_factory=set)
    repaired: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    decision: str = ""

    def wants(self, document_id: str, among: Sequence[str] = SPLITS) -> bool:
        """Counts a document as found, and returns whether it belongs to the split."""
        self.found += 1
        if len(among) > 1:
            self.buckets.add(bucket_of(document_id))
        return choose_split(document_id, among, self.validation_percent) == self.split

    def unreadable(self, error: OSError) -> None:
        """Counts a file or folder that the system would not let us read."""
        self.dropped[f"unreadable ({error.strerror})"] += 1

    def text(self, paths: Iterable[Path]) -> str | None:
        """Returns the files' texts joined by newlines, or None if none of them is readable."""
        texts = []
        for path in paths:
            try:
                text, repaired = decode_file(path.read_bytes(), str(path))
            except OSError as error:
                self.unreadable(error)
                continue
            texts.append(text)
            self.repaired += repaired
        return "\n".join(texts) if texts else None


def stdlib(path: Path | None, reader: SplitReader) -> Iterator[Document]:
    """Yields the packages and modules of the standard library, by default the running one."""
    root = Path(sysconfig.get_path("stdlib")) if path is None else path
    return _packages([root], reader)


def site_packages(path: Path | None, reader: SplitReader) -> Iterator[Document]:
    """Yields the installed packages and modules, by default the running interpreter's."""
    installed = (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return _packages(dict.fromkeys(installed) if path is None else [path], reader)


def _packages(roots: Iterable[Path], reader: SplitReader) -> Iterator[Document]:
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for entry in (entry for root in roots for entry in sorted(_directory(root).iterdir())):
        if entry.is_dir() and _is_module(entry.name):
            files[entry.name] += _files_below(entry, ".py", _is_module, reader)
        elif entry.suffix == ".py" and _is_module(entry.stem):
            files[entry.stem].append(entry)
    for name, paths in files.items():
        wanted = bool(paths) and reader.wants(name)
        if wanted and (text := reader.text(paths)) is not None:
            yield Document(name, name, text)


def _is_module(name: str) -> bool:
    return name.isidentifier() and name not in _NOT_READ


def text_files(path: Path | None, reader: SplitReader) -> Iterator[Document]:
    """Yields the documents of the files that `TextFiles` finds at a path."""
    if path is None:
        raise DataError("source 'text' needs a path: give a file, or a directory of files.")
    return _documents(TextFiles([path], reader.reading), reader)


def huggingface(path: Path | None, reader: SplitReader) -> Iterator[Document]:
    """Yields the documents of a Hugging Face data set, by its folder or its name."""
    if path is None:
        raise DataError("source 'huggingface' needs a path: give a folder, or a name on the hub.")
    columns, by = reader.reading.columns, reader.reading.split_by
    return _documents(HubDataset(path, columns, by, reader.download), reader)


def _documents(found: TextFiles | HubDataset, reader: SplitReader) -> Iterator[Document]:
    reader.decision = found.decision
    reader.dropped.update(found.left_out)
    where_is: dict[str, str] = {}
    for file, record in joined(_records(found, reader)):
        if (first := where_is.setdefault(record.id, record.where)) != record.where:
            raise DataError(f"{first} and {record.where} share the id {record.id!r}.")
        if file.is_document or reader.wants(record.id, file.among):
            reader.repaired += record.repaired
            yield Document(record.id, record.title, record.text or "")


def _records(
    found: TextFiles | HubDataset, reader: SplitReader
) -> Iterator[tuple[TextFile, Record]]:
    """Yields the records of all files that may belong to the split, and text files that do."""
    for file in found.files:
        if file.is_document and not reader.wants(file.name, file.among):
            continue
        if reader.split not in file.among:
            reader.found += 1
            continue
        try:
            yield from ((file, record) for record in found.records(file))
        except OSError as error:
            reader.unreadable(error)


def _files_below(
    root: Path, suffix: str, enter: Callable[[str], bool], reader: SplitReader
) -> Iterator[Path]:
    """Yields the files ending in `suffix`, depth first, sorted, files before subfolders.

    Only folders whose name passes `enter` are read; links to folders are not followed.
    """
    for folder, subfolders, names in os.walk(root, onerror=reader.unreadable):
        subfolders[:] = sorted(filter(enter, subfolders))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffix))


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the directory that holds the files.")
    return path


SOURCES = {
    "stdlib": stdlib,
    "site_packages": site_packages,
    "jsonl": text_files,
    "text": text_files,
    "huggingface": huggingface,
}
