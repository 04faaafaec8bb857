"""Documents from a directory that tensorflow-datasets has prepared, read without TensorFlow.

Only array_record shards can be read so. Whatever is missing, cut short or damaged is an error that
names the shard and the record; where the directory has a `manifest.json`, as those written by
`block_recurrent.lab.corpora` have, every text is compared with it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent.data.documents import Document
from block_recurrent.data.errors import DataError, unknown_name
from block_recurrent.data.utf8 import decode

INFO, FEATURES, MANIFEST = "dataset_info.json", "features.json", "manifest.json"
_TEXT_FEATURES = ("book_text", "text")
_AGAIN = "copy or prepare it again"


class Record(NamedTuple):
    """One record of a shard.

    Attributes:
      document: id, title and text.
      link: the address where it was published; may be empty.
      year: the year of publication, 0 where unknown.
      repaired: whether the text was not valid UTF-8.
    """

    document: Document
    link: str
    year: int
    repaired: bool


class TfdsDirectory:
    """A directory with `dataset_info.json`, `features.json` and array_record shards.

    The text is the feature `book_text` or `text`; the id is the feature `source`, or else `book_id`
    as a string.

    Attributes:
      name: the name of the data set.
      splits: split -> number of documents; splits without documents are not there.

    Raises:
      DataError: it is no such directory. `records`, `documents` and `fingerprint` also raise it
        for shards that are missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        info = _read_info(self.path)
        self.name: str = info.name
        self._features: Any = info.features
        self._text = _text_feature(self.path, self._features)
        self._shards = {
            split: list(zip(map(Path, s.filepaths), s.shard_lengths, strict=True))
            for split, s in info.splits.items()
            if s.num_examples
        }
        self.splits: Mapping[str, int] = {
            split: sum(length for _, length in shards) for split, shards in self._shards.items()
        }
        self._manifest = _read_manifest(self.path)
        self._current: _Shard | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of what is there, wherever the directory lies.

        It is that of the manifest, which holds the SHA-256 of every shard; without a manifest that
        of the two descriptions and the names and sizes of the shards.
        """
        if (self.path / MANIFEST).exists():
            return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()
        digest = hashlib.sha256()
        for name in (INFO, FEATURES):
            digest.update(hashlib.sha256((self.path / name).read_bytes()).digest())
        for shard, _ in (shard for split in sorted(self.splits) for shard in self._shards[split]):
            digest.update(f"{shard.name} {_size(shard)}\n".encode())
        return digest.hexdigest()

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of a split, in the order in which they are stored."""
        return (record.document for record in self.records(split))

    def records(self, split: str) -> Iterator[Record]:
        """Yields the records of a split, in the order in which they are stored."""
        if split not in self.splits:
            raise unknown_name("split", split, self.splits)
        for shard, _ in self._shards[split]:
            _size(shard)
        return (self.record(split, index) for index in range(self.splits[split]))

    def record(self, split: str, index: int) -> Record:
        """Returns a record of a split, by its place in it, from 0."""
        number = index
        for shard, length in self._shards[split]:
            if number < length:
                where = f"{shard}, record {number}"
                record = self._parse(self._open(shard, length).read(number), where)
                if self._manifest is not None:
                    _compare(record.document, self._manifest[shard.name][number], where)
                return record
            number -= length
        raise DataError(f"{self.path}: {split} has no record {index}, only {self.splits[split]:,}.")

    def _open(self, shard: Path, length: int) -> "_Shard":
        """The shard, which stays open until another one is asked for."""
        if self._current is None or self._current.path != shard:
            listed = length if self._manifest is None else len(self._manifest.get(shard.name, ()))
            if listed != length:
                raise DataError(
                    f"{shard}: {MANIFEST} lists {listed:,} documents and {INFO} {length:,}; "
                    f"{_AGAIN}."
                )
            self._current = _Shard(shard, length)
        return self._current

    def _parse(self, data: bytes, where: str) -> Record:
        try:
            values = self._features.deserialize_example_np(data)
        except Exception as error:  # the parser's own kinds, of several packages
            raise DataError(f"{where} is damaged ({error}); {_AGAIN}.") from error
        data = values[self._text]
        if not isinstance(data, bytes):
            raise DataError(f"{where} has no {self._text}: it is damaged; {_AGAIN}.")
        text, repaired = decode(data)
        identity = values.get("source") if "source" in self._features else values.get("book_id")
        if identity is None:
            raise DataError(f"{where} has neither source nor book_id, which name it; {_AGAIN}.")
        title = _as_text(values.get("book_title"))
        year = _as_text(values.get("publication_date"))
        return Record(
            Document(_as_text(identity), title, text),
            _as_text(values.get("book_link")),
            int(year) if year.isdecimal() else 0,
            repaired,
        )


def _read_info(path: Path) -> Any:
    """The `tfds.core.DatasetInfo` of a directory."""
    for name in (INFO, FEATURES):
        if not (path / name).is_file():
            raise DataError(_why_not(path, name))
    _check_format(path / INFO)
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(os.fspath(path)).info
    except Exception as error:  # no common kind: ParseError, ValueError, KeyError and others
        raise DataError(f"{path}: {INFO} or {FEATURES} is damaged ({error}); {_AGAIN}.") from error


def _why_not(path: Path, name: str) -> str:
    if not path.is_dir():
        return f"{path} is not a directory: give the one that holds {INFO}."
    below = sorted(path.glob(f"*/{INFO}")) + sorted(path.glob(f"*/*/{INFO}"))
    way_out = below[-1].parent if below else "one that prepare_data.py or tensorflow-datasets wrote"
    return f"{path} holds no {name}: give {way_out}."


def _check_format(file: Path) -> None:
    try:
        found = json.loads(file.read_bytes()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is damaged ({error}); {_AGAIN}.") from error
    if found != "array_record":
        raise DataError(
            f"{file.parent} holds {found} files: only array_record can be read without TensorFlow; "
            "prepare it with file_format='array_record'."
        )


def _text_feature(path: Path, features: Any) -> str:
    for name in _TEXT_FEATURES:
        if name in features:
            if "source" in features or "book_id" in features:
                return name
            raise DataError(f"{path} has neither a feature source nor book_id, which name a text.")
    raise DataError(
        f"{path} has no feature {' or '.join(_TEXT_FEATURES)}, only {', '.join(sorted(features))}: "
        "give a data set of texts."
    )


def _read_manifest(path: Path) -> Mapping[str, Sequence[tuple[str, str]]] | None:
    """Shard -> (id, SHA-256 of the text) of its documents in order; None without a manifest."""
    file = path / MANIFEST
    if not file.exists():
        return None
    shards: dict[str, list[tuple[str, str]]] = {}
    try:
        for document in json.loads(file.read_bytes())["documents"]:
            identity = document["id"], document["sha256"]
            shards.setdefault(document["shard"], []).append(identity)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error!r}); {_AGAIN}.") from error
    return shards


def _size(shard: Path) -> int:
    try:
        return shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard} is missing ({error.strerror}); {_AGAIN}.") from error


class _Shard:
    """An array_record file, which must be whole.

    A file cut after its first 64 KiB opens without a complaint, and gives an empty record for any
    index: hence the comparison with the number of records that it should have.
    """

    def __init__(self, path: Path, length: int):
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = path
        _size(path)
        self._reader = ArrayRecordReader(
            os.fspath(path), "readahead_buffer_size:0,max_parallelism:0"
        )
        found = self._reader.num_records()
        if not self._reader.ok() or found != length:
            raise DataError(
                f"{path}, record {min(found, length)}: the shard holds {found:,} readable records, "
                f"{INFO} says {length:,}: it is damaged or cut short; {_AGAIN}."
            )

    def read(self, number: int) -> bytes:
        """Returns a record."""
        try:
            return self._reader.read([number])[0]
        except RuntimeError as error:
            raise DataError(
                f"{self.path}, record {number} is damaged ({error}); {_AGAIN}."
            ) from error


def _compare(document: Document, expected: tuple[str, str], where: str) -> None:
    identity, sha256 = expected
    if document.id != identity:
        raise DataError(f"{where} is {document.id!r}, not {identity!r} as in {MANIFEST}; {_AGAIN}.")
    if hashlib.sha256(document.text.encode()).hexdigest() != sha256:
        raise DataError(
            f"{where}: the text of {document.id!r} is not the one of {MANIFEST}; {_AGAIN}."
        )


def _as_text(value: object) -> str:
    if value is None:
        return ""
    return decode(value)[0] if isinstance(value, bytes) else str(value)
