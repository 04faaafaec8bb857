"""Where documents come from: Python packages, JSON lines, and directories of text files.

A source is a function `(path, reader) -> documents`. It asks the reader which ids belong to the
split, has it read the files of those, and has it count what had to be dropped or repaired.
"""

import os
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from block_recurrent.data.documents import (
    DataError,
    Document,
    decode,
    replace_lone_surrogates,
    split_of,
)
from block_recurrent.data.json_lines import json_records, to_document

_NOT_READ = frozenset({"test", "tests", "idle_test", "__pycache__"})


@dataclass
class SplitReader:
    """Reads the documents of one split, and counts what it finds and what it drops.

    Attributes:
      split: "train" or "validation".
      validation_percent: share of the documents that `split_of` gives to validation.
      found: documents met, of every split.
      repaired: files or records read whose text was not valid UTF-8.
      dropped: what was left out, as reason -> number of files or documents.
    """

    split: str
    validation_percent: int
    found: int = 0
    repaired: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def wants(self, document_id: str) -> bool:
        """Counts a document as found, and returns whether it belongs to the split."""
        self.found += 1
        return split_of(document_id, self.validation_percent) == self.split

    def unreadable(self, error: OSError) -> None:
        """Counts a file or folder that the system would not let us read."""
        self.dropped[f"unreadable ({error.strerror})"] += 1

    def text(self, paths: Iterable[Path]) -> str | None:
        """Returns the files' texts joined by newlines, or None if none of them is readable."""
        texts = []
        for path in paths:
            try:
                text, repaired = decode(path.read_bytes())
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
    """Yields every `*.txt` file below a directory; the id is its relative POSIX path."""
    if path is None:
        raise DataError("source 'text' needs a path: give a directory of *.txt files.")
    root = _directory(path)
    for file in _files_below(root, ".txt", lambda folder: True, reader):
        document_id = file.relative_to(root).as_posix()
        if reader.wants(document_id) and (text := reader.text([file])) is not None:
            yield Document(document_id, file.stem, text)


def _files_below(
    root: Path, suffix: str, enter: Callable[[str], bool], reader: SplitReader
) -> Iterator[Path]:
    """Yields the files ending in `suffix`, depth first, sorted, files before subfolders.

    Only folders whose name passes `enter` are read; links to folders are not followed.
    """
    for folder, subfolders, names in os.walk(root, onerror=reader.unreadable):
        subfolders[:] = sorted(filter(enter, subfolders))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffix))


def jsonl(path: Path | None, reader: SplitReader) -> Iterator[Document]:
    """Yields the records of a JSON-lines file, or of the split's file in a directory."""
    if path is None:
        raise DataError(
            "source 'jsonl' needs a path: give a .jsonl or .jsonl.gz file, or a folder of splits."
        )
    given, file = path.is_dir(), path
    if given:
        names = [f"{reader.split}.jsonl", f"{reader.split}.jsonl.gz"]
        present = [path / name for name in names if (path / name).exists()]
        if len(present) != 1:
            raise DataError(
                f"{path} must hold exactly one of {' and '.join(names)}, it holds {len(present)}."
            )
        file = present[0]
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{file} must end in .jsonl or .jsonl.gz: rename it, or use source 'text'.")
    found: dict[str, str] = {}
    for record, where, invalid in json_records(file):
        document = to_document(record, where)
        if (first := found.setdefault(document.id, where)) != where:
            raise DataError(f"{first} and {where} share the id {document.id!r}.")
        if reader.wants(document.id) or given:
            text, lone_surrogates = replace_lone_surrogates(document.text)
            reader.repaired += invalid or lone_surrogates
            yield document._replace(text=text)


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the directory that holds the files.")
    return path


SOURCES = {
    "stdlib": stdlib,
    "site_packages": site_packages,
    "jsonl": jsonl,
    "text": text_files,
}
