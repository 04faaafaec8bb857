"""Documents that are text already: text files, JSON lines and Parquet tables."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent.data.documents import Document
from block_recurrent.data.errors import DataError
from block_recurrent.data.json_lines import (
    json_lines,
    optional_package,
    parse_json,
    to_document,
)
from block_recurrent.data.utf8 import decode, replace_lone_surrogates
from block_recurrent.lab.corpora.entries import Content, Entry, Unusable

_JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_ENDINGS = (".txt", *_JSON, ".parquet")
_KINDS = ", ".join(_ENDINGS)
_SPLIT_FILE = re.compile(r"(train|validation|test)(-\d+-of-\d+)?\.(jsonl(\.gz|\.zst)?|parquet)")
_ROWS = 64


class _File(NamedTuple):
    """A file, and what a text in it would be called."""

    path: Path
    id: str


class _RawRecord(NamedTuple):
    values: Mapping[str, Any]
    where: str
    repaired: bool


class _Record(NamedTuple):
    document: Document
    where: str
    repaired: bool


class TextFiles:
    """One document for every `*.txt` file and for every record of the other files.

    The id of a text file is its path below the directory that was given. Records have an id, a
    text and perhaps a title; an id may be a number. A file of records called train, validation or
    test, `train-00000-of-00002.parquet` too, says to which split its records belong.

    Text is decoded as UTF-8, invalid bytes as U+FFFD, and otherwise left as it is.

    Args:
      paths: directories, read with all below, and files; `*.txt`, `*.jsonl`, `*.jsonl.gz`,
        `*.jsonl.zst` and `*.parquet`.
      id_column, text_column, title_column: what the fields of a record are called.

    Raises:
      DataError: a path does not exist or ends otherwise. `entries` also raises it for damaged
        files, records without id or text, and an id that occurs twice.
    """

    name = "text"
    wanted = f"text that is not only white space, in files {_KINDS}"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        id_column: str = "id",
        text_column: str = "text",
        title_column: str = "title",
    ):
        self.left_out: dict[str, int] = {}
        self._columns = {"id": id_column, "title": title_column, "text": text_column}
        self._paths = [Path(path) for path in paths]
        for path in self._paths:
            if not path.exists():
                raise DataError(f"{path} does not exist: correct the path.")
            if not path.is_dir() and not path.name.endswith(_ENDINGS):
                raise DataError(f"{path} must end in one of {_KINDS}: rename or convert it.")

    @property
    def options(self) -> Mapping[str, object]:
        """What the fields of a record are called."""
        return {f"{field}_column": column for field, column in self._columns.items()}

    def entries(self) -> Iterator[Entry]:
        """Yields the documents in the order of the paths; in a directory, sorted by name."""
        self.left_out = {}
        seen: dict[str, str] = {}
        for file in (file for path in self._paths for file in self._files(path)):
            for entry, where in self._entries_of(file):
                if (first := seen.setdefault(entry.id, where)) != where:
                    raise DataError(
                        f"{first} and {where} share the id {entry.id!r}: rename or remove one."
                    )
                yield entry

    def _files(self, path: Path) -> Iterator[_File]:
        if not path.is_dir():
            yield _File(path, _printable(path.name))
            return
        for folder, subfolders, names in os.walk(path, onerror=self._unreadable):
            subfolders.sort()
            for file in (Path(folder, name) for name in sorted(names)):
                if file.name.endswith(_ENDINGS):
                    yield _File(file, _printable(file.relative_to(path).as_posix()))
                else:
                    self._count(f"not {_KINDS}")

    def _unreadable(self, error: OSError) -> None:
        self._count(f"unreadable folder ({error.strerror})")

    def _count(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def _entries_of(self, file: _File) -> Iterator[tuple[Entry, str]]:
        if file.path.suffix == ".txt":
            yield Entry(file.id, lambda: _read_text(file.path)), str(file.path)
            return
        match = _SPLIT_FILE.fullmatch(file.path.name)
        for document, where, repaired in self._records(file.path):
            content = Content(document.title, document.text, repaired=repaired)
            entry = Entry(document.id, lambda content=content: content, match and match[1])
            yield entry, where

    def _records(self, file: Path) -> Iterator[_Record]:
        rows = _parquet_rows if file.suffix == ".parquet" else _json_rows
        for row, where, invalid in rows(file, self._columns):
            values = {field: row[name] for field, name in self._columns.items() if name in row}
            if isinstance(values.get("id"), int):
                values["id"] = str(values["id"])
            if values.get("title") is None:
                values["title"] = ""
            self._check_columns(row, where)
            document = to_document(values, where)
            text, lone_surrogates = replace_lone_surrogates(document.text)
            yield _Record(document._replace(text=text), where, invalid or lone_surrogates)

    def _check_columns(self, row: Mapping[str, Any], where: str) -> None:
        for field in ("id", "text"):
            if self._columns[field] not in row:
                raise DataError(
                    f"{where}: no {self._columns[field]!r}, only {', '.join(map(repr, row))}: "
                    f"--{field}_column=NAME says what is the {field}."
                )


def _printable(name: str) -> str:
    """A file's name, bytes that are not UTF-8 written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_text(file: Path) -> Content:
    try:
        text, repaired = decode(file.read_bytes())
    except OSError as error:
        raise Unusable(f"unreadable ({error.strerror})") from error
    return Content(_printable(file.stem), text, repaired=repaired)


def _json_rows(file: Path, columns: Mapping[str, str]) -> Iterator[_RawRecord]:
    del columns
    for number, line in json_lines(file):
        content, invalid = decode(line)
        where = f"{file}, line {number}"
        yield _RawRecord(parse_json(content, where), where, invalid)


def _parquet_rows(file: Path, columns: Mapping[str, str]) -> Iterator[_RawRecord]:
    """Yields the rows, a few at a time in memory."""
    parquet, arrow = optional_package("pyarrow.parquet", file), optional_package("pyarrow", file)
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in columns.values()] or names[:1]
            for rows in table.iter_batches(batch_size=_ROWS, columns=wanted):
                for row in _with_bytes(rows, arrow).to_pylist():
                    number += 1
                    yield _decoded(row, f"{file}, row {number}")
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read after row {number}: {error}; fetch or write it again."
        ) from error


def _with_bytes(rows: Any, arrow: Any) -> Any:
    """The rows with bytes for strings, since Parquet does not ensure that they are UTF-8."""
    binary = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    fields = [field.with_type(binary.get(field.type, field.type)) for field in rows.schema]
    return rows.cast(arrow.schema(fields))


def _decoded(row: Mapping[str, Any], where: str) -> _RawRecord:
    texts = {name: decode(value) for name, value in row.items() if isinstance(value, bytes)}
    values = {name: texts[name][0] if name in texts else row[name] for name in row}
    return _RawRecord(values, where, any(invalid for _, invalid in texts.values()))
