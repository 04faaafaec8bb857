"""Files of JSON lines, plain or compressed, and the documents that their records hold."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from block_recurrent.data.documents import DataError, Document, decode
from block_recurrent.system.extras import require


def json_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of every line that is not blank.

    A file that ends in `.gz` or `.zst` is decompressed.

    Raises:
      DataError: the file cannot be read, is damaged or cut short. The message names it.
      MissingPackage: `.zst` needs zstandard.
    """
    try:
        lines = _zstd_lines(file) if file.suffix == ".zst" else _plain_lines(file)
        yield from ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch or write it again.") from error


def _plain_lines(file: Path) -> Iterator[bytes]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        yield from lines


def _zstd_lines(file: Path) -> Iterator[bytes]:
    """Yields the lines of Zstandard frames; the library's own reader takes a cut for the end."""
    zstandard = require("zstandard", "data")
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, whole, rest = decompressor.decompressobj(), True, b""
    try:
        with file.open("rb") as data:
            while chunk := data.read(2**17):
                while chunk:
                    *lines, rest = (rest + frame.decompress(chunk)).split(b"\n")
                    yield from lines
                    chunk, whole = frame.unused_data, frame.eof
                    if whole:
                        frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not whole:
        raise EOFError("the compressed data is cut short")
    yield rest


def parse_json(line: str | bytes, where: str) -> dict[str, Any]:
    """Returns the object that a line holds; bytes are read as UTF-8.

    Raises:
      DataError: the line is no JSON object. The message begins with `where`.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON, {error}; write one object a line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}; write an object with id and text.")
    return record


def json_records(file: Path) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Yields the objects in a file, where each one is, and whether it was not valid UTF-8.

    Raises the errors of `json_lines` and `parse_json`.
    """
    for number, line in json_lines(file):
        text, invalid = decode(line)
        where = f"{file}, line {number}"
        yield parse_json(text, where), where, invalid


def to_document(record: Mapping[str, Any], where: str) -> Document:
    """Returns the document that a record holds; without a title, the title is empty.

    Raises:
      DataError: a field is missing or is no string. The message begins with `where`.
    """
    values = {"title": ""} | dict(record)
    for key in Document._fields:
        if key not in values:
            raise DataError(f"{where}: no {key!r}; every record needs id and text.")
        if not isinstance(values[key], str):
            raise DataError(f"{where}: {key!r} is {values[key]!r:.60}; write it as a string.")
    return Document(values["id"], values["title"], values["text"])
