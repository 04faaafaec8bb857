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
from block_recurrent.system.extras import require
from block_recurrent.system.hints import must_be_one_of

INFO, FEATURES, MANIFEST = "dataset_info.json", "features.json", "manifest.json"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_TEXT_FEATURES = ("book_text", "text")
_AGAIN = "copy or prepare it again"


class TfdsDirectory:
    """A directory with `dataset_info.json`, `features.json` and array_record shards.

    The text is the feature `book_text` or `text`, the title is `book_title`. The id is the feature
    `source`, or else `book_id` as a string.

    Attributes:
      name: the name of the data set.
      splits: split -> number of documents, without splits that have none.

    Raises:
      DataError: it is no such directory. `documents` and `fingerprint` also raise it for shards
        that are missing or damaged.
      MissingPackage: array_record is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        info = _read_info(self.path)
        self.name: str = info.name
        self._features: Any = info.features
        self._text = _text_feature(self.path, self._features)
        splits = {split: found for split, found in info.splits.items() if found.num_examples}
        self._shards = {
            split: list(zip(map(Path, found.filepaths), found.shard_lengths, strict=True))
            for split, found in splits.items()
        }
        self.splits: Mapping[str, int] = {name: s.num_examples for name, s in splits.items()}
        self._manifest = _read_manifest(self.path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal, wherever the directory lies.

        It is the digest of the manifest, which holds the SHA-256 of every shard. Without a manifest
        it is the digest of the two descriptions and of the names and sizes of the shards.
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
        text = values[self._text]
        if not isinstance(text, bytes):
            raise DataError(f"{where} has no {self._text}: it is damaged; {_AGAIN}.")
        identity = values.get("source") if "source" in self._features else values.get("book_id")
        if identity is None:
            raise DataError(f"{where} has neither source nor book_id, which name it; {_AGAIN}.")
        title = values.get("book_title") or b""
        return Document(_as_text(identity), _as_text(title), _as_text(text))


def _read_info(path: Path) -> Any:
    """Returns the `tfds.core.DatasetInfo` of a directory."""
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give the one that holds {INFO}.")
    for name in (INFO, FEATURES):
        if not (path / name).is_file():
            below = sorted(path.glob(f"*/{INFO}")) + sorted(path.glob(f"*/*/{INFO}"))
            made = "one that `block-recurrent prepare-data` or tensorflow-datasets wrote"
            raise DataError(f"{path} holds no {name}: give {below[-1].parent if below else made}.")
    try:
        form = json.loads((path / INFO).read_bytes()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path / INFO} is damaged ({error}); {_AGAIN}.") from error
    if form != "array_record":
        raise DataError(
            f"{path} holds {form} files: only array_record can be read without TensorFlow; prepare "
            "it with file_format='array_record'."
        )
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(os.fspath(path)).info
    except Exception as error:  # no common kind: ParseError, ValueError, KeyError and others
        raise DataError(f"{path}: {INFO} or {FEATURES} is damaged ({error}); {_AGAIN}.") from error


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
    """Returns shard -> (id, SHA-256 of the text) of its documents; None without a manifest."""
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


def _as_text(value: object) -> str:
    return decode(value)[0] if isinstance(value, bytes) else str(value)
