"""Records in files: JSON, CSV, Parquet and Arrow, plain or compressed."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent.data.documents import DataError, decode, decode_file
from block_recurrent.data.json_lines import (
    json_records,
    lines_of,
    most_bytes,
    open_bytes,
    read_errors,
    read_whole,
)
from block_recurrent.system.extras import require
from block_recurrent.system.text import parse_json

TEXT_COLUMNS = ("book_text", "text", "content", "code")
_ROWS = 64
_TEXTS = ("str", "string", "large_string")  # in Python and in Arrow
COMPRESSED = (".gz", ".zst")


class Columns(NamedTuple):
    """What the fields of a record are called; None to know it by the layouts that are published.

    Attributes:
      id: one column, or several joined by commas; a dot leads into a nested record.
      text: the column of the text.
      title: the column of the title.
    """

    id: str | None = None
    text: str | None = None
    title: str | None = None


PUBLISHED = Columns()


class Row(NamedTuple):
    """A record as its file has it.

    Attributes:
      values: its fields.
      where: the file, and the line or row in it.
      invalid: whether its bytes were not valid UTF-8.
      kinds: the names of all fields and what they hold, where the file says it.
    """

    values: Mapping[str, Any]
    where: str
    invalid: bool = False
    kinds: Mapping[str, str] | None = None

    def described(self) -> str:
        """The names of all fields and what they hold, for messages."""
        return ", ".join(f"{name!r} ({kind})" for name, kind in self._kinds().items())

    def texts(self) -> list[str]:
        """The names of the fields that hold text."""
        return [name for name, kind in self._kinds().items() if kind in _TEXTS]

    def _kinds(self) -> Mapping[str, str]:
        return self.kinds or {name: type(value).__name__ for name, value in self.values.items()}


def column(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Returns a field; a dot in its name leads into a nested record, if there is no such field."""
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inner = values.get(first)
    return column(inner, rest, default) if rest and isinstance(inner, Mapping) else default


def identity(values: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Returns the values of these columns, joined by slashes; None without columns or a value."""
    found = [column(values, name) for name in names]
    return "/".join(map(str, found)) if found and None not in found else None


def kind_of(path: Path) -> str:
    """Returns the ending of a file that tells its kind, such as ".jsonl" of "a.jsonl.gz"."""
    if path.suffix not in COMPRESSED:
        return path.suffix
    inner = Path(path.stem).suffix
    return "" if inner in (".parquet", ".arrow") else inner


def _json_rows(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    return (Row(*record) for record in json_records(file))


def _json_or_list(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Yields the objects of one list, or of JSON lines, which also end in `.json`."""
    with read_errors(file), open_bytes(file) as content:
        first = content.read(2**10).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first != b"[":
        yield from _json_rows(file, wanted)
        return
    with read_errors(file):
        text, invalid = decode_file(read_whole(file), str(file))
    try:
        records = parse_json(text)
    except ValueError as error:
        raise DataError(f"{file}: no list in JSON, {error}; write it again.") from error
    for number, record in enumerate(records, start=1):
        where = f"{file}, item {number}"
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DataError(f"{where}: a {kind}; write an object with id and text.")
        yield Row(record, where, invalid)


def _csv_rows(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Yields the rows of a table whose first line has the names of its columns."""
    with read_errors(file), open_bytes(file) as content:
        csv.field_size_limit(most_bytes(file))
        lines = io.TextIOWrapper(content, "utf-8-sig", "surrogateescape", newline="")
        delimiter = "\t" if kind_of(file) == ".tsv" else ","
        try:
            rows = csv.DictReader(lines_of(lines, file), delimiter=delimiter)
            _columns(file, rows.fieldnames or (), wanted)
            for number, row in enumerate(rows, start=1):
                texts = {
                    name: decode(value.encode("utf-8", "surrogateescape"))
                    for name, value in row.items()
                    if isinstance(value, str)
                }
                values = {name: text for name, (text, _) in texts.items()}
                invalid = any(invalid for _, invalid in texts.values())
                yield Row(values, f"{file}, row {number}", invalid)
        except csv.Error as error:
            raise DataError(f"{file} cannot be read: {error}; write it again.") from error


def _columns(file: Path, names: Sequence[str], wanted: Collection[str]) -> list[str]:
    """The wanted columns of a table, or else the first one, which tells how many rows it has.

    Raises:
      DataError: two of them have the same name.
    """
    found = [name for name in names if name in wanted] or [*names[:1]]
    for name in found:
        if names.count(name) > 1:
            raise DataError(
                f"{file}: {names.count(name)} columns are called {name!r}; rename them."
            )
    return found


def _parquet_rows(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", "data")

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(file) as table:
            columns = _columns(file, table.schema_arrow.names, wanted)
            for batch in table.iter_batches(batch_size=_ROWS, columns=columns):
                yield table.schema_arrow, batch

    return _table_rows(file, batches())


def _arrow_rows(file: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Yields the rows of Arrow's file format, or of its stream format, which `datasets` writes."""
    arrow, ipc = require("pyarrow", "data"), require("pyarrow.ipc", "data")

    def batches() -> Iterator[Any]:
        with arrow.memory_map(str(file)) as source:
            try:
                reader = ipc.open_file(source)
                found = (reader.get_batch(index) for index in range(reader.num_record_batches))
            except arrow.ArrowInvalid:
                source.seek(0)
                found = reader = ipc.open_stream(source)
            names = _columns(file, reader.schema.names, wanted)
            for batch in found:
                yield reader.schema, batch.select(names)

    return _table_rows(file, batches())


def _table_rows(file: Path, batches: Iterator[Any]) -> Iterator[Row]:
    """Yields the rows of schemas and batches, a few at a time in memory."""
    arrow, number = require("pyarrow", "data"), 0
    try:
        for schema, batch in batches:
            kinds = {field.name: str(field.type) for field in schema}
            batch = _with_bytes(batch, arrow)
            batch.validate(full=True)  # lengths that a file states are otherwise believed
            for row in batch.to_pylist():
                number += 1
                texts = {name: decode(v) for name, v in row.items() if isinstance(v, bytes)}
                values = row | {name: text for name, (text, _) in texts.items()}
                invalid = any(invalid for _, invalid in texts.values())
                yield Row(values, f"{file}, row {number}", invalid, kinds)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read after row {number}: {error}; fetch or write it again."
        ) from error


def _with_bytes(batch: Any, arrow: Any) -> Any:
    """Returns the rows with bytes for strings, which files need not have checked to be UTF-8."""
    binary = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    fields = [field.with_type(binary.get(field.type, field.type)) for field in batch.schema]
    return batch.cast(arrow.schema(fields))


# What reads the rows of each kind of file. Of tables it reads the wanted columns that there are.
READERS: Mapping[str, Callable[[Path, Collection[str]], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_or_list,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
