"""Files of text, read in one way by all programs: plain text, JSON, CSV, Parquet and Arrow."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from block_recurrent.data.documents import DataError, decode_file, replace_lone_surrogates
from block_recurrent.data.records import READERS, Row, column, kind_of
from block_recurrent.data.splits import decide_splits

KINDS = f".txt, {', '.join(READERS)}; JSON and CSV also .gz or .zst"
# Descriptions that lie beside data: Hugging Face's and tensorflow-datasets' own.
_NOT_DATA = frozenset(
    {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "features.json", "state.json"}
)
_TEXTS = ("text", "content", "code", "book_text")
_IDS = ("id", "meta.id", "meta.arxiv_id")


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


class TextFile(NamedTuple):
    """A file that holds documents.

    Attributes:
      path: where it is.
      name: its path below the directory that was given, as text.
      among: the splits that its documents may belong to.
    """

    path: Path
    name: str
    among: tuple[str, ...]

    @property
    def is_text(self) -> bool:
        """Whether the file is a document, whose id is its name."""
        return self.path.suffix == ".txt"


class TextFiles:
    """The files below some paths: a document for every `*.txt` and every record of the others.

    Text is decoded as UTF-8, invalid bytes as U+FFFD, and otherwise left as it is, but for a byte
    order mark, which is left out. Rows of github-code and The Stack are files of repositories: the
    document is the repository, its files in the order of their paths, joined by newlines.

    Args:
      paths: directories, read with all below, and files.
      columns: what the fields of a record are called.
      split_by: "names", or "hash" to ignore the names of files and folders, see `decide_splits`.

    Attributes:
      files: those found, in the order of the paths; in a directory sorted by name.
      left_out: what was found and not read, as reason -> number of files or folders.
      decision: a line for people: how the splits were decided.

    Raises:
      DataError: a path does not exist or is of no kind that is read, or the splits are not clear.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        columns: Columns = PUBLISHED,
        split_by: str = "names",
    ):
        self.left_out: Counter[str] = Counter()
        self._columns = columns
        found = [pair for path in paths for pair in self._below(Path(path), len(paths) > 1)]
        among, self.decision = decide_splits([name for _, name in found], split_by)
        self.files = [
            TextFile(path, _printable(name if len(paths) == 1 else _own(path, paths)), splits)
            for (path, name), splits in zip(found, among, strict=True)
        ]

    def _below(self, path: Path, several: bool) -> Iterator[tuple[Path, PurePath]]:
        """Yields files, and the names that may tell their splits."""
        if not path.exists():
            raise DataError(f"{path} does not exist: correct the path.")
        if not path.is_dir():
            if not _is_read(path):
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
        if file.is_text:
            text, repaired = decode_file(file.path.read_bytes(), str(file.path))
            yield Record(file.name, PurePath(file.name).stem, text, str(file.path), repaired)
            return
        rows = READERS[kind_of(file.path)](file.path, _wanted(self._columns))
        for number, row in enumerate(rows, start=1):
            yield self._read(file, number, row)

    def _read(self, file: TextFile, number: int, row: Row) -> Record:
        columns, by = self._columns, None
        for layout in _LAYOUTS:
            if columns.id is None and layout.columns <= row.values.keys():
                read = zip(columns, layout.read, strict=True)
                columns, by = Columns(*(given or own for given, own in read)), layout.parts
        text, repaired = _text_of(row, columns.text)
        values = [column(row.values, name) for name in _several(columns.id, row.values)]
        identity = "/".join(map(str, values)) if values and None not in values else None
        title = column(row.values, columns.title or "title")
        strings = [identity or f"{file.name}:{number}", title if isinstance(title, str) else ""]
        strings = [replace_lone_surrogates(string)[0] for string in strings]
        part = None if by is None or identity is None else str(row.values[by])
        return Record(strings[0], strings[1], text, row.where, row.invalid or repaired, part)


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


def _is_read(path: Path) -> bool:
    return path.name not in _NOT_DATA and (path.suffix == ".txt" or kind_of(path) in READERS)


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
    names = {*_TEXTS, *_IDS, "title", *read, *filter(None, itertools.chain(*given))}
    return names | {name.partition(".")[0] for name in names}


def _text_of(row: Row, name: str | None) -> tuple[str | None, bool]:
    """Returns the text of a row, and whether it was repaired."""
    missing = object()
    for known in [name] if name else _TEXTS:
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
