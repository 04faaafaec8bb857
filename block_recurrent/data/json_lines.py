"""Files of JSON lines, plain or compressed."""

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, cast

from block_recurrent.data.documents import DataError, decode
from block_recurrent.system.extras import require
from block_recurrent.system.text import parse_json

# A line, or a file that is read whole, may unpack to so many bytes, or to so many times the bytes
# that its file has: a few kilobytes may unpack to as many gigabytes.
UNPACKED_BYTES, UNPACKED_TIMES = 2**29, 64
_ZSTD_PIECE = 2**10  # compressed bytes, which unpack to 44 MiB at most
_PIECE = 2**16


@contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a DataError that names it."""
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch or write it again.") from error


def open_bytes(file: Path) -> BinaryIO:
    """Opens a file for reading; one that ends in `.gz` or `.zst` is decompressed.

    Raises:
      MissingPackage: `.zst` needs zstandard.
    """
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix == ".zst":
        return io.BufferedReader(_ZstdReader(file))
    return file.open("rb")


class _ZstdReader(io.RawIOBase):
    """The content of Zstandard frames; the library's own reader takes a cut for the end."""

    def __init__(self, file: Path):
        self._chunks, self._rest = _zstd_chunks(file), memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as the next chunk goes; returns how many bytes that are."""
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _zstd_chunks(file: Path) -> Iterator[bytes]:
    zstandard = require("zstandard", "data")
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, whole = decompressor.decompressobj(), True
    try:
        with file.open("rb") as data:
            while chunk := data.read(_ZSTD_PIECE):
                while chunk:
                    yield frame.decompress(chunk)
                    chunk, whole = frame.unused_data, frame.eof
                    if whole:
                        frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not whole:
        raise EOFError("the compressed data is cut short")


def most_bytes(file: Path) -> int:
    """Returns how many bytes of a file may come in one piece; plain files have never more."""
    return max(UNPACKED_BYTES, UNPACKED_TIMES * file.stat().st_size)


def _unpacks_to_more(limit: int, where: str) -> DataError:
    return DataError(
        f"{where}: unpacks to more than {limit:,} bytes in one piece; unpack it if it is meant."
    )


def read_within(content: BinaryIO | gzip.GzipFile, limit: int) -> bytes | None:
    """Returns the rest of an open file, or None if it has more than `limit` bytes."""
    found = io.BytesIO()
    while piece := content.read(_PIECE):
        if found.write(piece) and found.tell() > limit:
            return None
    return found.getvalue()


def read_whole(file: Path) -> bytes:
    """Returns the content of a file; one that ends in `.gz` or `.zst` is decompressed.

    Raises:
      DataError: it has more than `most_bytes`.
      OSError, EOFError, zlib.error: it cannot be read.
      MissingPackage: `.zst` needs zstandard.
    """
    limit = most_bytes(file)
    with open_bytes(file) as content:
        found = read_within(content, limit)
    if found is None:
        raise _unpacks_to_more(limit, str(file))
    return found


def lines_of(content: IO[AnyStr], file: Path) -> Iterator[AnyStr]:
    """Yields the lines of an open file. Raises DataError if one has more than `most_bytes`."""
    limit = most_bytes(file)
    for number in itertools.count(1):
        if not (line := content.readline(limit + 1)):
            return
        if len(line) > limit:
            raise _unpacks_to_more(limit, f"{file}, line {number}")
        yield line


def json_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of every line that is not blank.

    A file that ends in `.gz` or `.zst` is decompressed. A byte order mark is left out.

    Raises:
      DataError: the file cannot be read, is damaged, cut short or UTF-16, or a line has more than
        `most_bytes`. The message names it.
      MissingPackage: `.zst` needs zstandard.
    """
    with read_errors(file), open_bytes(file) as content:
        for number, line in enumerate(lines_of(content, file), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{file} is UTF-16: convert it to UTF-8.")
            if line.strip():
                yield number, line


def parse_record(line: str | bytes, where: str) -> dict[str, Any]:
    """Returns the object that a line holds; bytes are read as UTF-8.

    Raises:
      DataError: the line is no JSON object. The message begins with `where`.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON, {error}; write one object a line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}; write an object with id and text.")
    return record


def json_records(file: Path) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Yields the objects in a file, where each one is, and whether it was not valid UTF-8.

    Raises the errors of `json_lines` and `parse_record`.
    """
    for number, line in json_lines(file):
        text, invalid = decode(line)
        where = f"{file}, line {number}"
        yield parse_record(text, where), where, invalid
