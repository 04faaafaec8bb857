"""Where documents come from: Python packages, JSON lines, and directories of text files.

A source is a function `(path, reading) -> documents`. It asks `reading` which ids belong to the
split, reads only those where it can, and leaves the count of what it had to drop or repair there.
"""

import gzip
import importlib
import json
import os
import re
import sysconfig
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from block_recurrent.data.documents import Document, split_of
from block_recurrent.data.errors import DataError

_NOT_READ = frozenset({"test", "tests", "idle_test", "__pycache__"})
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Reading:
    """One pass over a source: which split it wants, and what it has met so far.

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
        """Counts a document as found and says whether it belongs to the split."""
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


def decode(data: bytes) -> tuple[str, bool]:
    """Returns UTF-8 `data` as text, invalid bytes as U+FFFD, and whether there were any."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), True


def replace_lone_surrogates(text: str) -> tuple[str, bool]:
    """Returns `text` with U+FFFD for what UTF-8 cannot encode, and whether there was any."""
    replaced, count = _LONE_SURROGATE.subn("\ufffd", text)
    return replaced, count > 0


def stdlib(path: Path | None, reading: Reading) -> Iterator[Document]:
    """Yields the packages and modules of the standard library, by default the running one."""
    root = Path(sysconfig.get_path("stdlib")) if path is None else path
    return _packages([root], reading)


def site_packages(path: Path | None, reading: Reading) -> Iterator[Document]:
    """Yields the installed packages and modules, by default the running interpreter's."""
    installed = (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return _packages(dict.fromkeys(installed) if path is None else [path], reading)


def _packages(roots: Iterable[Path], reading: Reading) -> Iterator[Document]:
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for entry in (entry for root in roots for entry in sorted(_directory(root).iterdir())):
        if entry.is_dir() and _is_module(entry.name):
            files[entry.name] += _files_below(entry, ".py", _is_module, reading)
        elif entry.suffix == ".py" and _is_module(entry.stem):
            files[entry.stem].append(entry)
    for name, paths in files.items():
        wanted = bool(paths) and reading.wants(name)
        if wanted and (text := reading.text(paths)) is not None:
            yield Document(name, name, text)


def _is_module(name: str) -> bool:
    return name.isidentifier() and name not in _NOT_READ


def text_files(path: Path | None, reading: Reading) -> Iterator[Document]:
    """Yields every `*.txt` file below a directory; the id is its relative POSIX path."""
    root = _directory(path or _needs_path("text", "a directory of *.txt files"))
    for file in _files_below(root, ".txt", lambda folder: True, reading):
        document_id = file.relative_to(root).as_posix()
        if reading.wants(document_id) and (text := reading.text([file])) is not None:
            yield Document(document_id, file.stem, text)


def _files_below(
    root: Path, suffix: str, enter: Callable[[str], bool], reading: Reading
) -> Iterator[Path]:
    """Yields the files ending in `suffix`, depth first, sorted, files before subfolders.

    Only folders whose name passes `enter` are read; links to folders are not followed.
    """
    for folder, subfolders, names in os.walk(root, onerror=reading.unreadable):
        subfolders[:] = sorted(filter(enter, subfolders))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffix))


def jsonl(path: Path | None, reading: Reading) -> Iterator[Document]:
    """Yields the records of a JSON-lines file, or of the split's file in a directory."""
    path = path or _needs_path("jsonl", "a .jsonl or .jsonl.gz file, or a directory of splits")
    given = path.is_dir()
    file = _split_file(path, reading.split) if given else path
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{file} must end in .jsonl or .jsonl.gz: rename it, or use source 'text'.")
    line_of: dict[str, int] = {}
    for number, line in json_lines(file):
        content, invalid = decode(line)
        where = f"{file}, line {number}"
        document = to_document(parse_json(content, where), where)
        if (first := line_of.setdefault(document.id, number)) != number:
            raise DataError(f"{file}: lines {first} and {number} share the id {document.id!r}.")
        if reading.wants(document.id) or given:
            text, lone_surrogates = replace_lone_surrogates(document.text)
            reading.repaired += invalid or lone_surrogates
            yield document._replace(text=text)


def _split_file(directory: Path, split: str) -> Path:
    names = [f"{split}.jsonl", f"{split}.jsonl.gz"]
    present = [directory / name for name in names if (directory / name).exists()]
    if len(present) != 1:
        raise DataError(
            f"{directory} must hold exactly one of {' and '.join(names)}, it holds {len(present)}."
        )
    return present[0]


def json_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of every line, of .gz and .zst too, not blank.

    Raises DataError, naming the file, if it is damaged.
    """
    open_file = {".gz": gzip.open, ".zst": _open_zstd}.get(file.suffix, open)
    try:
        with open_file(file, "rb") as lines:
            yield from ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch or write it again.") from error


@contextmanager
def _open_zstd(file: Path, mode: Literal["rb"]) -> Iterator[Iterator[bytes]]:
    with file.open(mode) as data:
        yield _split_lines(_decompress(data, optional_package("zstandard", file)))


def _decompress(data: BinaryIO, zstandard: Any) -> Iterator[bytes]:
    """Yields the content of Zstandard frames; the library's own reader takes a cut for the end."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, whole = decompressor.decompressobj(), True
    try:
        while chunk := data.read(2**17):
            while chunk:
                yield frame.decompress(chunk)
                chunk, whole = frame.unused_data, frame.eof
                if whole:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not whole:
        raise EOFError("the compressed data is cut short")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def optional_package(name: str, file: Path) -> Any:
    """Imports what only some files need; raises DataError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{file}: reading it needs {package}: pip install {package}.") from error


def parse_json(line: str, where: str) -> dict[str, Any]:
    """Returns the object in a line; raises DataError, beginning with `where`, if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON, {error}; write one object a line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}; write an object with id and text.")
    return record


def to_document(record: Mapping[str, Any], where: str) -> Document:
    """Returns the document of a record; raises DataError, beginning with `where`, if it is none."""
    values = {"title": ""} | dict(record)
    for key in Document._fields:
        if key not in values:
            raise DataError(f"{where}: no {key!r}; every record needs id and text.")
        if not isinstance(values[key], str):
            raise DataError(f"{where}: {key!r} is {values[key]!r:.60}; write it as a string.")
    return Document(values["id"], values["title"], values["text"])


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the directory that holds the files.")
    return path


def _needs_path(source: str, what: str) -> NoReturn:
    raise DataError(f"source {source!r} needs a path: give {what}.")


SOURCES = {
    "stdlib": stdlib,
    "site_packages": site_packages,
    "jsonl": jsonl,
    "text": text_files,
}
