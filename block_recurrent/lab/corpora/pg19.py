"""PG-19: the published directory of books, or a copy that tensorflow-datasets has prepared.

28,602 books for training, 50 for validation and 100 for test (Rae et al. 2020, arXiv 1911.05507).
"""

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from block_recurrent.data.documents import SPLITS
from block_recurrent.data.errors import DataError
from block_recurrent.data.tfds_reader import INFO, Record, TfdsDirectory
from block_recurrent.data.utf8 import decode
from block_recurrent.lab.corpora.entries import Content, Entry

COUNTS = {"train": 28_602, "validation": 50, "test": 100}
METADATA = "metadata.csv"
_COLUMNS = "id,title,year,url"
_MAX_ID = 2**31 - 1


class BookMetadata(NamedTuple):
    """What `metadata.csv` says of a book."""

    title: str
    year: int
    link: str


class PG19:
    """The books, each with its id, in the published splits.

    Args:
      path: a directory with `dataset_info.json` and array_record shards, or one with `train/*.txt`,
        `validation/*.txt`, `test/*.txt` and `metadata.csv`, whose rows, without a header line, are
        id, title, year, url.
      expect_counts: whether the numbers of books must be the published ones.

    Raises:
      DataError: the path is neither. `entries` also raises it for other numbers of books, an id
        that occurs twice or is no number, and a book without a row or with a bad row.
    """

    name = "pg19"
    wanted = "the books of PG-19"

    def __init__(self, path: str | os.PathLike[str], *, expect_counts: bool = True):
        self._path = Path(path)
        self._expect_counts = expect_counts
        self._left_out: dict[str, int] = {}
        prepared = (self._path / INFO).exists() or any(self._path.glob(f"*/{INFO}"))
        self._books = _Prepared(self._path) if prepared else _Files(self._path)

    @property
    def options(self) -> Mapping[str, object]:
        """What decides which books are read."""
        return {**self._books.options, "expect_counts": self._expect_counts}

    @property
    def left_out(self) -> Mapping[str, int]:
        """The number of files that are no books, by reason."""
        return self._books.left_out

    def entries(self) -> Iterator[Entry]:
        """Yields the books: train, validation, test, each by number, or as the copy has them."""
        counts = self._books.count()
        if self._expect_counts and counts != COUNTS:
            wrong = (
                f"{split} has {counts[split]:,} books, not {published:,}"
                for split, published in COUNTS.items()
                if counts[split] != published
            )
            raise DataError(
                f"{self._path} is not all of PG-19: {'; '.join(wrong)}. Complete it, or say "
                "--partial if it is a part."
            )
        yield from self._books.entries()


class _Files:
    """The published directory."""

    options: Mapping[str, object] = {"form": "files"}

    def __init__(self, path: Path):
        if not any((path / split).is_dir() for split in SPLITS):
            raise DataError(
                f"{path} holds neither {INFO} nor the folders {', '.join(SPLITS)}: give a copy of "
                "PG-19, or get one with --download."
            )
        self._path = path
        self._files: dict[str, list[Path]] = {}
        self._rows: dict[str, BookMetadata] = {}
        self.left_out: dict[str, int] = {}

    def count(self) -> dict[str, int]:
        """Lists the files and the metadata; returns the number of books of each split."""
        self.left_out = {}
        self._files = {split: self._books_of(split) for split in SPLITS}
        self._rows = read_metadata(self._path / METADATA)
        found: dict[str, Path] = {}
        for file in (file for files in self._files.values() for file in files):
            if (first := found.setdefault(file.stem, file)) != file:
                raise DataError(f"{first} and {file} are the same book: remove one.")
            if file.stem not in self._rows:
                raise DataError(
                    f"{file}: {self._path / METADATA} has no row for book {file.stem}: add "
                    f"{_COLUMNS}, or fetch it again."
                )
        return {split: len(files) for split, files in self._files.items()}

    def _books_of(self, split: str) -> list[Path]:
        folder = self._path / split
        if not folder.is_dir():
            return []
        books = [file for file in folder.iterdir() if file.suffix == ".txt"]
        if others := sum(1 for file in folder.iterdir() if file.suffix != ".txt"):
            self.left_out["not a *.txt file"] = self.left_out.get("not a *.txt file", 0) + others
        for book in books:
            if not _is_id(book.stem):
                raise DataError(f"{book}: a book is called by its number, for instance 1342.txt.")
        return sorted(books, key=lambda book: int(book.stem))

    def entries(self) -> Iterator[Entry]:
        for split, files in self._files.items():
            for file in files:
                yield Entry(file.stem, lambda file=file: self._read(file), split)

    def _read(self, file: Path) -> Content:
        try:
            text, repaired = decode(file.read_bytes())
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): fetch it again.") from error
        row = self._rows[file.stem]
        number = int(file.stem)
        return Content(row.title, text, row.link, row.year, repaired=repaired, number=number)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) <= _MAX_ID


def read_metadata(file: Path) -> dict[str, BookMetadata]:
    """Returns the rows by id.

    Raises:
      DataError: a row is not in order or has an id for the second time; the message has the line.
    """
    rows: dict[str, BookMetadata] = {}
    lines: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as text:
            reader = csv.reader(text, strict=True)
            for fields in reader:
                where = f"{file}, line {reader.line_num}"
                if not (len(fields) == 4 and _is_id(fields[0]) and fields[2].isdecimal()):
                    raise DataError(f"{where}: {fields!r:.80} is not {_COLUMNS}; fetch it again.")
                book, title, year, link = fields
                if book in rows:
                    raise DataError(f"{where}: book {book} is in line {lines[book]} already.")
                rows[book], lines[book] = BookMetadata(title, int(year), link), reader.line_num
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({error}): fetch it again.") from error
    return rows


class _Prepared:
    """A directory that tensorflow-datasets reads."""

    def __init__(self, path: Path):
        self._directory = TfdsDirectory(path)
        self._ids: dict[str, list[str]] = {}
        self.left_out: dict[str, int] = {}

    @property
    def options(self) -> Mapping[str, object]:
        return {"form": "tensorflow-datasets", "fingerprint": self._directory.fingerprint}

    def count(self) -> dict[str, int]:
        """Returns the number of books of each split."""
        return {split: self._directory.splits.get(split, 0) for split in SPLITS}

    def entries(self) -> Iterator[Entry]:
        places: dict[str, tuple[str, int]] = {}
        for split in (split for split in SPLITS if split in self._directory.splits):
            for index, book in enumerate(self._ids_of(split)):
                if not _is_id(book):
                    raise DataError(f"{split}, record {index}: {book!r} is not the id of a book.")
                if (first := places.setdefault(book, (split, index))) != (split, index):
                    raise DataError(
                        f"{split}, record {index}: book {book} is record {first[1]} of {first[0]} "
                        "already; copy or prepare it again."
                    )
                yield Entry(book, lambda at=(split, index): self._read(*at), split)

    def _ids_of(self, split: str) -> Iterator[str]:
        """The ids in order; the records, which hold them, are read the first time only."""
        if split in self._ids:
            yield from self._ids[split]
            return
        ids = []
        for record in self._directory.records(split):
            ids.append(record.document.id)
            yield record.document.id
        self._ids[split] = ids

    def _read(self, split: str, index: int) -> Content:
        record: Record = self._directory.record(split, index)
        document = record.document
        return Content(
            document.title,
            document.text,
            record.link,
            record.year,
            repaired=record.repaired,
            number=int(document.id),
        )
