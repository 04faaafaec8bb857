"""Files of text, read in one way by all programs: plain text, JSON, CSV, Parquet and Arrow."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from block_recurrent.data.documents import (
    SPLITS,
    DataError,
    decode_file,
    replace_lone_surrogates,
)
from block_recurrent.data.json_lines import read_errors, read_whole
from block_recurrent.data.records import (
    COMPRESSED,
    PUBLISHED,
    READERS,
    TEXT_COLUMNS,
    Columns,
    Row,
    column,
    identity,
    kind_of,
)
from block_recurrent.data.splits import decide_splits

# Plain text; WikiText's files end in .tokens and .raw.
_TEXTS = (".txt", ".tokens", ".raw")
KINDS = f"{', '.join((*_TEXTS, *READERS))}; text, JSON and CSV also .gz or .zst"
# Descriptions that lie beside data: Hugging Face's and tensorflow-datasets' own.
_NOT_DATA = frozenset(
    {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "features.json", "state.json"}
)
_IDS = ("id", "meta.id", "meta.arxiv_id")


class Layout(NamedTuple):
    """A published layout, known by its columns.

    Attributes:
      columns: the columns that it has.
      read: what the fields of its documents are called.
      parts: if rows are parts of documents, the column by which those of one are ordered.
    """

    columns: frozenset[str]
    read: Columns
    parts: str | None = None


_LAYOUTS = (
    Layout(frozenset({"short_book_title", "url"}), Columns("url", "text", "short_book_title")),
    Layout(frozenset({"repo_name", "path", "code"}), Columns("repo_name", "code"), "path"),
    Layout(
        frozenset({"max_stars_repo_name", "max_stars_repo_path", "content"}),
        Columns("max_stars_repo_name", "content"),
        "max_stars_repo_path",
    ),
)


class Record(NamedTuple):
    """A document as it was read.

    Attributes:
      id: its id: of a text file its path, of a record its id or else its file and number.
      title: a title for people; may be empty.
      text: the text, which UTF-8 can encode; None where the record has null.
      where: the file, and the line or row in it.
      repaired: whether some of its bytes were not valid UTF-8.
      part: its place if it is one of several parts of a document, see `joined`.
    """

    id: str
    title: str
    text: str | None
    where: str
    repaired: bool
    part: str | None = None


class Reading(NamedTuple):
    """How files are read.

    Attributes:
      columns: what the fields of a record are called.
      split_by: "names", or "hash" to ignore the names of files and folders, see `decide_splits`.
      split_bytes: shares of train, validation and test, such as (90, 5, 5): every text file is cut
        there, to the byte, or at the next character's start; what names say is ignored.
      document_start: a regular expression; a line of a text file that it matches, or the first of
        several lines, begins a document. Without it every text file is a document.
    """

    columns: Columns = PUBLISHED
    split_by: str = "names"
    split_bytes: tuple[int, ...] | None = None
    document_start: str | None = None


AS_PUBLISHED = Reading()


class TextFile(NamedTuple):
    """A file that holds documents, or its share of a split.

    Attributes:
      path: where it is.
      name: its path below the directory that was given, as text; of a share with its split.
      among: the splits that its documents may belong to.
      is_document: whether it is one document, whose id is its name.
    """

    path: Path
    name: str
    among: tuple[str, ...]
    is_document: bool


class TextFiles:
    """The files below some paths: a document for every text file and every record of the others.

    Text is decoded as UTF-8, invalid bytes as U+FFFD, and otherwise left as it is, but for a byte
    order mark, which is left out. Rows of github-code and The Stack are files of repositories: the
    document is the repository, its files in the order of their paths, joined by newlines.

    Args:
      paths: directories, read with all below, and files. A file without an ending is text.
      reading: how they are read.

    Attributes:
      files: those found, in the order of the paths; in a directory sorted by name.
      left_out: what was found and not read, as reason -> number of files or folders.
      decision: a line for people: how the splits were decided.

    Raises:
      DataError: an option cannot be used, a path does not exist or is of no kind that is read, the
        splits are not clear, or the bytes of records were to be split.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        reading: Reading = AS_PUBLISHED,
    ):
        _check(reading)
        self.left_out: Counter[str] = Counter()
        self._reading = reading
        found = [pair for path in paths for pair in self._below(Path(path), len(paths) > 1)]
        if reading.split_bytes is None:
            among, self.decision = decide_splits([name for _, name in found], reading.split_by)
        else:
            among = [SPLITS] * len(found)
            shares = zip(SPLITS, reading.split_bytes, strict=True)
            parts = ", ".join(f"{split} {share}" for split, share in shares)
            self.decision = f"splits: shares of the bytes of every text file ({parts})"
        self.files = [
            file
            for (path, name), splits in zip(found, among, strict=True)
            for file in self._files(path, name if len(paths) == 1 else _own(path, paths), splits)
        ]

    def _files(self, path: Path, name: PurePath, among: tuple[str, ...]) -> Iterator[TextFile]:
        shares, printable = self._reading.split_bytes, _printable(name)
        is_document = _is_text(path) and self._reading.document_start is None
        if shares is None:
            yield TextFile(path, printable, among, is_document)
            return
        if not _is_text(path):
            raise DataError(f"{path} holds records, whose bytes are not split: give text files.")
        for split, share in zip(SPLITS, shares, strict=True):
            if share:
                yield TextFile(path, f"{printable}:{split}", (split,), is_document)

    def _below(self, path: Path, several: bool) -> Iterator[tuple[Path, PurePath]]:
        """Yields files, and the names that may tell their splits."""
        if not path.exists():
            raise DataError(f"{path} does not exist: correct the path.")
        if not path.is_dir():
            if path.suffix and not _is_read(path):
                raise DataError(f"{path} must end in one of {KINDS}: rename or convert it.")
            yield path, PurePath(path.name)
            return

        def unreadable(error: OSError) -> None:
            self.left_out[f"unreadable folder ({error.strerror})"] += 1

        above = path.absolute().parent if several else path.absolute()
        for folder, subfolders, names in os.walk(path.absolute(), onerror=unreadable):
            subfolders.sort()
            for file in (Path(folder, name) for name in sorted(names)):
                if _is_read(file):
                    yield path / file.relative_to(path.absolute()), file.relative_to(above)
                elif file.name not in _NOT_DATA:
                    self.left_out[f"not {KINDS}"] += 1

    def records(self, file: TextFile) -> Iterator[Record]:
        """Yields the documents of one of the files, or their parts.

        Raises:
          DataError: the file is damaged, or a record has no text. The message names it.
          OSError: a text file cannot be read.
        """
        if _is_text(file.path):
            yield from self._texts(file)
            return
        rows = READERS[kind_of(file.path)](file.path, _wanted(self._reading.columns))
        for number, row in enumerate(rows, start=1):
            yield record_of(row, self._reading.columns, f"{file.name}:{number}")

    def _texts(self, file: TextFile) -> Iterator[Record]:
        """Yields the documents of a text file, or of its share."""
        errors = read_errors(file.path) if file.path.suffix in COMPRESSED else nullcontext()
        with errors:
            text, repaired = decode_file(read_whole(file.path), str(file.path))
        if self._reading.split_bytes is not None:
            text = _share(text, self._reading.split_bytes, SPLITS.index(file.among[0]))
        if file.is_document:
            yield Record(file.name, PurePath(file.name).stem, text, str(file.path), repaired)
            return
        assert self._reading.document_start is not None
        for number, part in enumerate(_documents(text, self._reading.document_start, file), 1):
            title = part.strip().partition("\n")[0].strip(" =#\r")
            where = f"{file.path}, document {number}"
            yield Record(f"{file.name}:{number}", title, part, where, repaired and "\ufffd" in part)


def record_of(row: Row, columns: Columns, name: str) -> Record:
    """Returns the document that a row holds, or a part of one.

    Args:
      row: the row.
      columns: what its fields are called.
      name: its id if it has none.

    Raises:
      DataError: it has no text. The message names the file and the row.
    """
    by = None
    for layout in _LAYOUTS:
        if columns.id is None and layout.columns <= row.values.keys():
            read = zip(columns, layout.read, strict=True)
            columns, by = Columns(*(given or own for given, own in read)), layout.parts
    text, repaired = _text_of(row, columns.text)
    found = identity(row.values, _several(columns.id, row.values))
    title = column(row.values, columns.title or "title")
    strings = [found or name, title if isinstance(title, str) else ""]
    strings = [replace_lone_surrogates(string)[0] for string in strings]
    part = None if by is None or found is None else str(row.values[by])
    return Record(strings[0], strings[1], text, row.where, row.invalid or repaired, part)


def _check(reading: Reading) -> None:
    shares = reading.split_bytes
    if shares is not None and (len(shares) != 3 or min(shares) < 0 or not any(shares)):
        raise DataError(
            f"split_bytes = {shares} must be the shares of train, validation and test, such as "
            "(90, 5, 5)."
        )
    try:
        re.compile(reading.document_start or "")
    except re.error as error:
        raise DataError(
            f"document_start = {reading.document_start!r} is no regular expression: {error}."
        ) from error


def _share(text: str, shares: Sequence[int], number: int) -> str:
    """Returns a share of a text by its UTF-8 bytes; a character belongs to the earlier one."""
    data = text.encode()
    ends = [len(data) * sum(shares[:index]) // sum(shares) for index in (number, number + 1)]
    for index, end in enumerate(ends):
        while end < len(data) and data[end] & 0xC0 == 0x80:  # within a character
            end += 1
        ends[index] = end
    return data[slice(*ends)].decode()


def _documents(text: str, start: str, file: TextFile) -> list[str]:
    """Cuts a text before every line that matches; blank lines before the first belong to it."""
    matches = re.finditer(start, text, re.MULTILINE)
    starts = list(dict.fromkeys(text.rfind("\n", 0, found.start()) + 1 for found in matches))
    if not starts:
        raise DataError(
            f"{file.path}: document_start = {start!r} matches nowhere: correct the expression."
        )
    starts = [0, *starts[not text[: starts[0]].strip() :]]
    return [text[begin:end] for begin, end in itertools.pairwise([*starts, len(text)])]


def joined(pairs: Iterable[tuple[TextFile, Record]]) -> Iterator[tuple[TextFile, Record]]:
    """Yields files and records; parts of a document are held in memory, and come last, as one."""
    documents: dict[tuple, list[tuple[TextFile, Record]]] = {}
    for file, record in pairs:
        if record.part is None:
            yield file, record
        else:
            documents.setdefault((file.among, record.id), []).append((file, record))
    for found in documents.values():
        found.sort(key=lambda pair: pair[1].part or "")
        texts = [record.text for _, record in found if record.text is not None]
        repaired = any(record.repaired for _, record in found)
        file, first = found[0]
        yield file, first._replace(text="\n".join(texts), repaired=repaired, part=None)


def _is_text(path: Path) -> bool:
    return kind_of(path) in ("", *_TEXTS)


def _is_read(path: Path) -> bool:
    return path.name not in _NOT_DATA and kind_of(path) in (*_TEXTS, *READERS)


def _own(path: Path, paths: Sequence[str | os.PathLike[str]]) -> PurePath:
    """Returns the path of a file below the one that was given."""
    given = next(found for found in map(Path, paths) if path == found or found in path.parents)
    return PurePath(path.name) if path == given else path.relative_to(given)


def _printable(path: PurePath) -> str:
    """Returns a path with slashes, and bytes that are not UTF-8 as \\xff."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _several(names: str | None, values: Mapping[str, Any]) -> Sequence[str]:
    """Returns the columns of the id; by default the first known one that the row has."""
    if names is not None:
        return names.split(",")
    return [name for name in _IDS if column(values, name) is not None][:1]


def _wanted(columns: Columns) -> set[str]:
    """Returns the names of all columns, outside nested records, that may be read."""
    read = (field for layout in _LAYOUTS for field in layout.columns)
    given = (columns.id or "").split(","), (columns.text, columns.title)
    names = {*TEXT_COLUMNS, *_IDS, "title", *read, *filter(None, itertools.chain(*given))}
    return names | {name.partition(".")[0] for name in names}


def _text_of(row: Row, name: str | None) -> tuple[str | None, bool]:
    """Returns the text of a row, and whether it was repaired."""
    missing = object()
    for known in [name] if name else TEXT_COLUMNS:
        text = column(row.values, known, missing)
        if text is None:
            return None, False
        if isinstance(text, str):
            return replace_lone_surrogates(text)
        if text is not missing:
            raise DataError(f"{row.where}: {known!r} is {text!r:.60}; write it as a string.")
    others = (repr(other) for other in row.texts() if other not in (*_IDS, "title"))
    texts = " or ".join(others) or "NAME"
    raise DataError(
        f"{row.where}: no {name or 'text'!r}, only {row.described()}: --text_column=NAME, or "
        f"data.text_column = {texts}, says what is the text."
    )
