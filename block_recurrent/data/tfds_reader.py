"""Documents from a directory that tensorflow-datasets has prepared, read without TensorFlow.

Only array_record shards can be read. A shard that is missing, cut short or damaged is an error that
names the shard and the record. Every text is compared with `manifest.json` where the directory has
one. `block_recurrent.lab.corpora` writes it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.data.documents import DataError, Document, decode
from block_recurrent.data.records import PUBLISHED, TEXT_COLUMNS, Columns, identity
from block_recurrent.system.extras import require
from block_recurrent.system.hints import must_be_one_of
from block_recurrent.system.text import parse_json

INFO, FEATURES, MANIFEST = "dataset_info.json", "features.json", "manifest.json"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_AGAIN = "copy or prepare it again"


class TfdsDirectory:
    """A directory with `dataset_info.json`, `features.json` and array_record shards.

    The text is the feature `book_text` or `text`, the title is `book_title`. The id is the feature
    `source`, or else `book_id` as a string, or else the record's shard and number.

    Args:
      path: the directory.
      columns: what the features are called, if not so.

    Attributes:
      name: the name of the data set.
      splits: split -> number of documents, without splits that have none.

    Raises:
      DataError: it is no such directory. `documents` and `fingerprint` also raise it for shards
        that are missing or damaged.
      MissingPackage: array_record is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Columns = PUBLISHED):
        self.path, self._columns = Path(path), columns
        info = _read_info(self.path)
        self.name: str = info.name
        self._features: Any = info.features
        self._manifest = _read_manifest(self.path)
        self._check_columns()
        splits = {split: found for split, found in info.splits.items() if found.num_examples}
        self._shards = {split: self._shards_of(found) for split, found in splits.items()}
        self.splits: Mapping[str, int] = {name: s.num_examples for name, s in splits.items()}

    def _shards_of(self, split: Any) -> list[tuple[Path, int]]:
        """Returns the files of a split, and the number of records in each."""
        try:
            files = [Path(os.path.abspath(file)) for file in split.filepaths]
            shards = list(zip(files, split.shard_lengths, strict=True))
        except (ValueError, LookupError, AttributeError) as error:  # of a template of their names
            raise DataError(f"{self.path / INFO} is damaged ({error}); {_AGAIN}.") from error
        inside = Path(os.path.abspath(self.path))
        if outside := [file for file in files if inside not in file.parents]:
            raise DataError(f"{self.path / INFO} names {outside[0]}, outside of its directory.")
        return shards

    def _check_columns(self) -> None:
        """Finds out which features are the text and the id."""
        columns, features = self._columns, self._features
        if self._manifest is not None:
            if "book_title" not in features:  # nothing else would notice
                raise DataError(
                    f"{self.path / FEATURES} has no book_title: it is damaged; {_AGAIN}."
                )
            if columns != PUBLISHED:
                raise DataError(
                    f"{self.path} has a manifest, which says what its features are: leave "
                    "data.id_column, data.text_column and data.title_column out."
                )
        self._ids = columns.id.split(",") if columns.id else _first(("source", "book_id"), features)
        texts = [columns.text] if columns.text else _first(TEXT_COLUMNS, features)
        self._text = texts[0] if texts else "text"
        for name, option in [(self._text, "text_column"), *((i, "id_column") for i in self._ids)]:
            if name not in features:
                raise DataError(
                    f"{self.path} has no feature {name!r}, only {', '.join(sorted(features))}: set "
                    f"data.{option}, or give a data set of texts."
                )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal, wherever the directory lies.

        It is the digest of the manifest, which holds the SHA-256 of every shard. Without a manifest
        it is the digest of the two descriptions and of the names and sizes of the shards. Columns
        that were given are part of it.
        """
        if self._manifest is not None:
            return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()
        columns = "" if self._columns == PUBLISHED else json.dumps(self._columns)
        digest = hashlib.sha256(columns.encode())
        for name in (INFO, FEATURES):
            digest.update(hashlib.sha256((self.path / name).read_bytes()).digest())
        for shard, _ in (shard for split in sorted(self.splits) for shard in self._shards[split]):
            digest.update(f"{shard.name} {_size(shard)}\n".encode())
        return digest.hexdigest()

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of a split, in the order in which they are stored."""
        if split not in self.splits:
            raise DataError(f"split {must_be_one_of(self.splits, split)}.")
        for shard, _ in self._shards[split]:
            _size(shard)  # a missing one is an error before the first document
        return (document for shard in self._shards[split] for document in self._read(*shard))

    def _read(self, shard: Path, length: int) -> Iterator[Document]:
        """Yields the documents of a shard, `length` of them."""
        expected = None if self._manifest is None else self._manifest.get(shard.name, [])
        if expected is not None and len(expected) != length:
            raise DataError(
                f"{shard}: {MANIFEST} lists {len(expected):,} documents and {INFO} {length:,}; "
                f"{_AGAIN}."
            )
        for number, data in enumerate(_records(shard, length)):
            where = f"{shard}, record {number}"
            document = self._parse(data, where)
            if expected is not None:
                found = document.id, hashlib.sha256(document.text.encode()).hexdigest()
                if found != expected[number]:
                    raise DataError(
                        f"{where}: {document.id!r} or its text is not what {MANIFEST} lists as "
                        f"{expected[number][0]!r}; {_AGAIN}."
                    )
            yield document

    def _parse(self, data: bytes, where: str) -> Document:
        try:
            values = self._features.deserialize_example_np(data)
        except Exception as error:  # the parser's own kinds, of several packages
            raise DataError(f"{where} is damaged ({error}); {_AGAIN}.") from error
        values = {
            name: decode(value)[0] if isinstance(value, bytes) else value
            for name, value in values.items()
        }
        text = values.get(self._text)
        if not isinstance(text, str):
            raise DataError(f"{where} has no {self._text}: it is damaged; {_AGAIN}.")
        title = values.get(self._columns.title or "book_title")
        found = identity(values, self._ids) if self._ids else Path(where).name
        if found is None:
            raise DataError(f"{where} has no {' and '.join(self._ids)}: it is damaged; {_AGAIN}.")
        return Document(found, title if isinstance(title, str) else "", text)


def _first(names: Sequence[str], features: Any) -> list[str]:
    return [name for name in names if name in features][:1]


def _read_info(path: Path) -> Any:
    """Returns the `tfds.core.DatasetInfo` of a directory."""
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the one that holds {INFO}.")
    for name in (INFO, FEATURES):
        if not (path / name).is_file():
            below = sorted(path.glob(f"*/{INFO}")) + sorted(path.glob(f"*/*/{INFO}"))
            made = "one that `block-recurrent prepare-data` or tensorflow-datasets wrote"
            raise DataError(f"{path} holds no {name}: give {below[-1].parent if below else made}.")
    form = _read_json(path / INFO).get("fileFormat", "tfrecord")
    if form != "array_record":
        raise DataError(
            f"{path} holds {form} files: only array_record can be read without TensorFlow; prepare "
            "it with file_format='array_record'."
        )
    for kind in _feature_kinds(_read_json(path / FEATURES)):
        if not kind.startswith("tensorflow_datasets.core.features."):
            raise DataError(
                f"{path / FEATURES} names {kind!r}, which is no feature of tensorflow-datasets and "
                "would be imported: nothing that a file names is run."
            )
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(os.fspath(path)).info
    except Exception as error:  # no common kind: ParseError, ValueError, KeyError and others
        raise DataError(f"{path}: {INFO} or {FEATURES} is damaged ({error}); {_AGAIN}.") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}); {_AGAIN}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is damaged (no JSON object); {_AGAIN}.")
    return found


def _feature_kinds(features: Any) -> Iterator[str]:
    """Yields the names of classes that tensorflow-datasets would look up, and import if need be."""
    if isinstance(features, list):
        features = dict(enumerate(features))
    if isinstance(features, dict):
        for name, value in features.items():
            if name in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            yield from _feature_kinds(value)


def _read_manifest(path: Path) -> Mapping[str, Sequence[tuple[str, str]]] | None:
    """Returns shard -> (id, SHA-256 of the text) of its documents; None without a manifest."""
    file = path / MANIFEST
    if not file.exists():
        return None
    shards: dict[str, list[tuple[str, str]]] = {}
    try:
        for document in _read_json(file)["documents"]:
            identity = document["id"], document["sha256"]
            shards.setdefault(document["shard"], []).append(identity)
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error!r}); {_AGAIN}.") from error
    return shards


def _size(shard: Path) -> int:
    try:
        return shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard} is missing ({error.strerror}); {_AGAIN}.") from error


def _records(shard: Path, length: int) -> Iterator[bytes]:
    """Yields the records of an array_record file, which must be whole.

    A file cut after its first 64 KiB opens without an error and gives an empty record for any
    index, so the number of records is compared with the expected one.
    """
    array_record = require("array_record.python.array_record_module", "data")
    reader = array_record.ArrayRecordReader(os.fspath(shard), READ_OPTIONS)
    found = reader.num_records()
    if not reader.ok() or found != length:
        raise DataError(
            f"{shard}, record {min(found, length)}: the shard holds {found:,} readable records, "
            f"{INFO} says {length:,}: it is damaged or cut short; {_AGAIN}."
        )
    for number in range(length):
        try:
            record = reader.read([number])[0]
        except RuntimeError as error:
            raise DataError(f"{shard}, record {number} is damaged ({error}); {_AGAIN}.") from error
        yield record
