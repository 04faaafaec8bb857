"""Documents that are text already: text files, JSON lines and Parquet tables."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from block_recurrent.data.documents import DataError, decode, replace_lone_surrogates
from block_recurrent.data.json_lines import json_records, to_document
from block_recurrent.lab.corpora.entries import Content, Entry, Unusable
from block_recurrent.system.extras import require

_ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_KINDS = ", ".join(_ENDINGS)
_SPLIT_FILE = re.compile(r"(train|validation|test)(-\d+-of-\d+)?\.(jsonl(\.gz|\.zst)?|parquet)")
_ROWS = 64

# A record: its fields, file and line or row, and whether its bytes were not valid UTF-8.
_Row = tuple[Mapping[str, Any], str, bool]


class TextFiles:
    """One document for every `*.txt` file and for every record of the other files.

    The id of a text file is its path below the directory that was given. Records have an id, a
    text and perhaps a title; an id may be a number. A file of records called train, validation or
    test, or `train-00000-of-00002.parquet`, says to which split its records belong.

    Text is decoded as UTF-8, invalid bytes as U+FFFD, and otherwise left as it is.

    Args:
      paths: directories, read with all below, and files; `*.txt`, `*.jsonl`, `*.jsonl.gz`,
        `*.jsonl.zst` and `*.parquet`.
      id_column, text_column, title_column: the names of the fields of a record.

    Raises:
      DataError: a path does not exist or ends otherwise. `entries` also raises it for damaged
        files and records without id or text.
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
        self.left_out: Counter[str] = Counter()
        self._columns = {"id": id_column, "title": title_column, "text": text_column}
        self._paths = [Path(path) for path in paths]
        for path in self._paths:
            if not path.exists():
                raise DataError(f"{path} does not exist: correct the path.")
            if not path.is_dir() and not path.name.endswith(_ENDINGS):
                raise DataError(f"{path} must end in one of {_KINDS}: rename or convert it.")

    @property
    def options(self) -> Mapping[str, object]:
        """The names of the fields of a record."""
        return {f"{field}_column": column for field, column in self._columns.items()}

    def entries(self) -> Iterator[Entry]:
        """Yields the documents in the order of the paths; in a directory, sorted by name."""
        self.left_out = Counter()
        for path in self._paths:
            for file, document_id in self._files(path):
                if file.suffix == ".txt":
                    yield Entry(document_id, partial(_read_text, file), str(file))
                else:
                    yield from self._records(file)

    def _files(self, path: Path) -> Iterator[tuple[Path, str]]:
        """Yields files, and the id of a text in each."""
        if not path.is_dir():
            yield path, _printable(path.name)
            return

        def unreadable(error: OSError) -> None:
            self.left_out[f"unreadable folder ({error.strerror})"] += 1

        for folder, subfolders, names in os.walk(path, onerror=unreadable):
            subfolders.sort()
            for file in (Path(folder, name) for name in sorted(names)):
                if file.name.endswith(_ENDINGS):
                    yield file, _printable(file.relative_to(path).as_posix())
                else:
                    self.left_out[f"not {_KINDS}"] += 1

    def _records(self, file: Path) -> Iterator[Entry]:
        split = match[1] if (match := _SPLIT_FILE.fullmatch(file.name)) else None
        is_table = file.suffix == ".parquet"
        rows = _parquet_rows(file, self._columns) if is_table else json_records(file)
        for row, where, invalid in rows:
            document = to_document(self._fields(row, where), where)
            text, lone_surrogates = replace_lone_surrogates(document.text)
            content = Content(document.title, text, repaired=invalid or lone_surrogates)
            yield Entry(document.id, lambda content=content: content, where, split)

    def _fields(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Returns the fields of a record by the names that ours have."""
        for field in ("id", "text"):
            if self._columns[field] not in row:
                raise DataError(
                    f"{where}: no {self._columns[field]!r}, only {', '.join(map(repr, row))}: "
                    f"--{field}_column=NAME says what is the {field}."
                )
        values = {field: row.get(name) for field, name in self._columns.items()}
        if isinstance(values["id"], int):
            values["id"] = str(values["id"])
        return values | {"title": "" if values["title"] is None else values["title"]}


def _printable(name: str) -> str:
    """Returns a file's name, with bytes that are not UTF-8 as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_text(file: Path) -> Content:
    try:
        text, repaired = decode(file.read_bytes())
    except OSError as error:
        raise Unusable(f"unreadable ({error.strerror})") from error
    return Content(_printable(file.stem), text, repaired=repaired)


def _parquet_rows(file: Path, columns: Mapping[str, str]) -> Iterator[_Row]:
    """Yields the rows, a few at a time in memory."""
    parquet, arrow = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in columns.values()] or names[:1]
            for rows in table.iter_batches(batch_size=_ROWS, columns=wanted):
                for row in _with_bytes(rows, arrow).to_pylist():
                    number += 1
                    texts = {name: decode(v) for name, v in row.items() if isinstance(v, bytes)}
                    values = row | {name: text for name, (text, _) in texts.items()}
                    invalid = any(invalid for _, invalid in texts.values())
                    yield values, f"{file}, row {number}", invalid
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read after row {number}: {error}; fetch or write it again."
        ) from error


def _with_bytes(rows: Any, arrow: Any) -> Any:
    """Returns the rows with bytes for strings, since Parquet does not check that they are UTF-8."""
    binary = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    fields = [field.with_type(binary.get(field.type, field.type)) for field in rows.schema]
    return rows.cast(arrow.schema(fields))
