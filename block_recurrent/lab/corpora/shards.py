"""Array_record shards and the descriptions that tensorflow-datasets reads them by."""

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.data.errors import DataError
from block_recurrent.system.files import flush_to_disk

# Compressed bytes would depend on the version of the compressor.
_OPTIONS = "group_size:1,uncompressed"
_MAX_RECORD = 2**31 - 2**20
_VERSION = "1.0.0"


class WriteError(DataError):
    """Something could not be written.

    Attributes:
      full: whether the disk, or the user's share of it, is full.
    """

    def __init__(self, path: Path, reason: str, *, full: bool):
        super().__init__(f"{path} cannot be written: {reason}")
        self.full = full


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the system and of array_record, within the context, into WriteError."""
    full = {errno.ENOSPC, errno.EDQUOT}
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(path, reason, full=error.errno in full) from error
    except RuntimeError as error:  # array_record has the system's reason in its message only
        names = [os.strerror(number) for number in (*full, errno.EFBIG, errno.EIO)]
        reason = next((name for name in names if name in str(error)), str(error))
        raise WriteError(path, reason, full=reason in names[: len(full)]) from error


class ShardWriter:
    """Writes one file of records; `close` or `discard` ends it.

    Attributes:
      path: the file.
    """

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self._count, self._digest = path, 0, hashlib.sha256()
        with writing(path):
            self._writer = ArrayRecordWriter(os.fspath(path), _OPTIONS)

    def write(self, record: bytes) -> None:
        """Adds a record; a full disk may show in `close` only."""
        with writing(self.path):
            self._writer.write(record)
        self._count += 1
        self._digest.update(record)

    def close(self) -> str:
        """Returns the SHA-256 of the file, which is then on disk and reads as it was written."""
        with writing(self.path):
            self._writer.close()
            self._check()
            flush_to_disk(self.path)
            flush_to_disk(self.path.parent)
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

    def discard(self) -> None:
        """Throws the file away."""
        with suppress(RuntimeError):
            self._writer.close()
        self.path.unlink(missing_ok=True)

    def _check(self) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(
            os.fspath(self.path), "readahead_buffer_size:0,max_parallelism:0"
        )
        found = reader.num_records()
        digest = hashlib.sha256()
        for number in range(found):
            digest.update(reader.read([number])[0])
        if found != self._count or digest.digest() != self._digest.digest():
            raise OSError(errno.EIO, f"it does not read as it was written, {found:,} records")
        reader.close()


class Examples:
    """Serializes documents with the features of the data set `pg19`, and `source`, the id."""

    def __init__(self) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        text = tfds.features.Text()
        self.features: Any = tfds.features.FeaturesDict(
            {
                "book_id": np.int32,
                "book_link": text,
                "book_text": text,
                "book_title": text,
                "publication_date": np.int32,
                "source": text,
            }
        )
        self._serializer = ExampleSerializer(self.features.get_serialized_info())

    def serialize(self, values: Mapping[str, str | bytes | int]) -> bytes:
        """Returns the record of a document, the same bytes for the same values."""
        size = len(values["book_text"]) if isinstance(values["book_text"], bytes) else 0
        if size > _MAX_RECORD:
            raise DataError(
                f"document {values['source']!r} has {size:,} bytes, more than the {_MAX_RECORD:,} "
                "that a record holds: divide it."
            )
        example = self._serializer.get_tf_example(self.features.encode_example(dict(values)))
        return example.SerializeToString(deterministic=True)


def final_name(file: str, number: int) -> str:
    """The name of a shard among `number` shards of its split."""
    return f"{file}-of-{number:05d}"


def shard_name(name: str, split: str, index: int) -> str:
    """The name of a shard as long as the number of shards is not known."""
    return f"{name}-{split}.array_record-{index:05d}"


def describe(
    directory: Path, name: str, features: Any, splits: Mapping[str, tuple[Sequence[int], int]]
) -> None:
    """Writes `dataset_info.json` and `features.json`.

    Args:
      directory: the directory of the shards.
      name: the name of the data set.
      features: the features of a record, from `Examples`.
      splits: split -> numbers of records of its shards, and bytes of its records.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.splits import SplitDict

    identity = tfds.core.DatasetIdentity(name, tfds.core.Version(_VERSION), str(directory), "")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=tfds.core.Path(directory), filetype_suffix="array_record"
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=num_bytes,
            filename_template=template.replace(split=split),
        )
        for split, (lengths, num_bytes) in splits.items()
    ]
    info.set_splits(SplitDict(infos))
    info.write_to_directory(directory)
