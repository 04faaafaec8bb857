"""PG-19: its published directory of books, and the download of that directory.

28,602 books for training, 50 for validation and 100 for test (Rae et al. 2020, arXiv 1911.05507).
A copy that tensorflow-datasets has prepared needs no preparation: `data.source = "tfds"` reads it.
"""

import base64
import csv
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent.data.documents import SPLITS, DataError, decode_file
from block_recurrent.data.json_lines import read_errors
from block_recurrent.lab.corpora.corpus_files import writing
from block_recurrent.lab.corpora.entries import Content, Entry
from block_recurrent.system.text import parse_json

COUNTS = {"train": 28_602, "validation": 50, "test": 100}
METADATA = "metadata.csv"
_COLUMNS = "id,title,year,url"
_MAX_ID = 2**31 - 1

SERVER = "https://storage.googleapis.com"
BUCKET = "deepmind-gutenberg"
_WANTED = re.compile(r"(train|validation|test)/[0-9]+\.txt|metadata\.csv")
_ATTEMPTS, _PAUSE, _TIMEOUT = 3, 1.0, 30  # the last two in seconds


class PG19:
    """The books of the published directory, each with its id, in the published splits.

    Args:
      path: has `train/*.txt`, `validation/*.txt`, `test/*.txt` and `metadata.csv`, whose rows,
        without a header line, are id, title, year, url.
      expect_counts: whether the numbers of books must be the published ones.

    Raises:
      DataError: the path has none of the folders. `entries` also raises it for other numbers of
        books, an id that is no number, and a book without a row or with a bad row.
    """

    name = "pg19"
    wanted = "the books of PG-19"
    decision = "splits: as published"

    def __init__(self, path: Path, *, expect_counts: bool = True):
        self._path = path
        self.options: Mapping[str, object] = {"expect_counts": expect_counts}
        self.left_out: Counter[str] = Counter()
        if not any((path / split).is_dir() for split in SPLITS):
            raise DataError(
                f"{path} holds none of the folders {', '.join(SPLITS)}: give a copy of PG-19, or "
                "get one with --download."
            )

    def entries(self) -> Iterator[Entry]:
        """Yields the books: train, validation, test, each by number."""
        self.left_out = Counter()
        books = {split: self._books_of(split) for split in SPLITS}
        rows = _read_metadata(self._path / METADATA)
        for file in (file for files in books.values() for file in files):
            if file.stem not in rows:
                raise DataError(
                    f"{file}: {self._path / METADATA} has no row for book {file.stem}: add "
                    f"{_COLUMNS}, or fetch it again."
                )
        wrong = [
            f"{split} has {len(books[split]):,} books, not {published:,}"
            for split, published in COUNTS.items()
            if len(books[split]) != published
        ]
        if self.options["expect_counts"] and wrong:
            raise DataError(
                f"{self._path} is not all of PG-19: {'; '.join(wrong)}. Complete it, or say "
                "--partial if it is a part."
            )
        for split, files in books.items():
            for file in files:
                read = partial(_read_book, file, *rows[file.stem])
                yield Entry(file.stem, read, str(file), (split,))

    def _books_of(self, split: str) -> list[Path]:
        folder = self._path / split
        files = list(folder.iterdir()) if folder.is_dir() else []
        books = [file for file in files if file.suffix == ".txt"]
        self.left_out.update(["not a *.txt file"] * (len(files) - len(books)))
        for book in books:
            if not _is_id(book.stem):
                raise DataError(f"{book}: a book is called by its number, for instance 1342.txt.")
        return sorted(books, key=lambda book: int(book.stem))


def _read_book(file: Path, title: str, year: int, link: str) -> Content:
    with read_errors(file):
        text, repaired = decode_file(file.read_bytes(), str(file))
    return Content(title, text, link, year, repaired=repaired, number=int(file.stem))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) <= _MAX_ID


def _read_metadata(file: Path) -> dict[str, tuple[str, int, str]]:
    """Returns book -> title, year, link."""
    rows: dict[str, tuple[str, int, str]] = {}
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as text:
            reader = csv.reader(text, strict=True)
            for fields in reader:
                where = f"{file}, line {reader.line_num}"
                if not (len(fields) == 4 and _is_id(fields[0]) and fields[2].isdecimal()):
                    raise DataError(f"{where}: {fields!r:.80} is not {_COLUMNS}; fetch it again.")
                book, title, year, link = fields
                if book in rows:
                    raise DataError(f"{where}: a second row for book {book}; fetch it again.")
                rows[book] = title, int(year), link
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({error}): fetch it again.") from error
    return rows


class _Object(NamedTuple):
    """A file of the bucket; `md5`, in base64, may be empty."""

    name: str
    size: int
    md5: str


def download(
    root: Path,
    *,
    server: str = SERVER,
    workers: int = 8,
    report: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Downloads what is missing of 28,752 books and their metadata, about 11 GB.

    A file gets its name only when its size and MD5 are those of the bucket's listing.

    Args:
      root: gets `train/`, `validation/`, `test/` and `metadata.csv`.
      server: address of the server of the bucket.
      workers: how many files are downloaded at a time.
      report: called with the number of files that are there and the number of all files. What it
        raises ends the download when the files that have been begun are complete.

    Raises:
      DataError: the server cannot be reached or a file cannot be written; the same call continues.
    """
    prefixes = (METADATA, "test/", "validation/", "train/")
    objects = [found for prefix in prefixes for found in _list(server, prefix)]
    there = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    missing = [found for found in objects if there.get(root / found.name) != found.size]
    done = len(objects) - len(missing)
    report(done, len(objects))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_fetch, server, found, root) for found in missing]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                report(done, len(objects))
        finally:
            pool.shutdown(cancel_futures=True)


def _list(server: str, prefix: str) -> Iterator[_Object]:
    """Yields the wanted files of the bucket whose names begin so, page by page."""
    token = ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix, "pageToken": token})
        url = f"{server}/storage/v1/b/{BUCKET}/o?{query}"
        data = _get(url)
        try:
            page: dict[str, Any] = parse_json(data)
            for item in page.get("items", ()):
                if _WANTED.fullmatch(item["name"]):
                    yield _Object(item["name"], int(item["size"]), item.get("md5Hash", ""))
            token = page.get("nextPageToken", "")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{url} gives no listing ({error!r}): try again later.") from error
        if not token:
            return


def _fetch(server: str, found: _Object, root: Path) -> None:
    file = root / found.name
    part = file.with_name(f".{file.name}.part")
    data = _get(f"{server}/{BUCKET}/{found.name}", found)
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.rename(file)


def _get(url: str, expected: _Object | None = None) -> bytes:
    """Returns the content of an address; tries again after errors that may be temporary."""
    reason = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _PAUSE)
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            reason = str(error)
            error.close()
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        else:
            md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            if not expected or (len(data) == expected.size and expected.md5 in ("", md5)):
                return data
            reason = f"{len(data):,} bytes came that are not the {expected.size:,} of the listing"
    raise DataError(
        f"{url} cannot be downloaded ({reason}): check the network; the same command continues."
    )
