"""The files of a corpus: array_record shards, descriptions for tensorflow-datasets, manifest."""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.data.documents import SPLITS, DataError
from block_recurrent.data.tfds_reader import READ_OPTIONS
from block_recurrent.system.extras import require
from block_recurrent.system.files import flush_to_disk, reason
from block_recurrent.system.text import count_reasons

FORMAT = 1
MAX_RECORD = 2**31 - 2**20
_OPTIONS = "group_size:1,uncompressed"  # compressed bytes depend on the compressor's version
_VERSION = "1.0.0"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the system and of array_record into a DataError that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be written: {reason(error)}. Make sure that it can be, then run the "
            "same command again: it continues."
        ) from error


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Split:
    """A split of a corpus as it was written; its fields are JSON values.

    Attributes:
      name: "train", "validation" or "test".
      identity: all that decides what is in it.
      documents: what was written, in order: id, bytes of text, SHA-256 of the text, split, shard.
      dropped: what was left out, in order: id, reason, split.
      skipped: parts of documents that were left out, as reason -> number.
      repaired: the number of documents whose text was not valid in its encoding.
      shards: its files: name, split, number of documents, size in bytes, SHA-256.
      record_bytes: the sum of the sizes of its records.
      signatures: of its texts, as `Copies` gives them; not in the manifest.
    """

    name: str
    identity: Mapping[str, Any]
    documents: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    repaired: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    record_bytes: int = 0
    signatures: list[str] = field(default_factory=list)


def write_shard(path: Path, split: Split, records: Sequence[bytes]) -> None:
    """Writes a file of records; adds it to its split when it is on the disk and reads as written.

    Raises:
      DataError: it cannot be written. A full disk may show only when the file is closed.
    """
    array_record = require("array_record.python.array_record_module", "data")
    with writing(path):
        writer = array_record.ArrayRecordWriter(os.fspath(path), _OPTIONS)
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
        reader = array_record.ArrayRecordReader(os.fspath(path), READ_OPTIONS)
        same = (reader.read([number])[0] == record for number, record in enumerate(records))
        if reader.num_records() != len(records) or not all(same):
            raise OSError(errno.EIO, "it does not read as it was written")
        reader.close()
        flush_to_disk(path)
        split.shards.append(
            {
                "file": path.name,
                "split": split.name,
                "documents": len(records),
                "size": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )
    split.record_bytes += sum(map(len, records))


class Examples:
    """Serializes documents with the features of the data set `pg19`, and `source`, the id."""

    def __init__(self) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        texts = ("book_link", "book_text", "book_title", "source")
        features = {"book_id": np.int32, "publication_date": np.int32}
        features |= dict.fromkeys(texts, tfds.features.Text())
        self.features: Any = tfds.features.FeaturesDict(features)
        self._serializer = ExampleSerializer(self.features.get_serialized_info())

    def serialize(self, values: Mapping[str, str | bytes | int]) -> bytes:
        """Returns the record of a document, the same bytes for the same values."""
        example = self._serializer.get_tf_example(self.features.encode_example(dict(values)))
        return example.SerializeToString(deterministic=True)


def describe(directory: Path, name: str, features: Any, splits: Sequence[Split]) -> None:
    """Writes `dataset_info.json` and `features.json` for the splits that have shards."""
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
            name=split.name,
            shard_lengths=[shard["documents"] for shard in split.shards],
            num_bytes=split.record_bytes,
            filename_template=template.replace(split=split.name),
        )
        for split in splits
        if split.shards
    ]
    info.set_splits(SplitDict(infos))
    info.write_to_directory(directory)


def make_manifest(
    settings: Mapping[str, Any], splits: Sequence[Split], left_out: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the manifest, the same for the same input on every machine.

    Its fields: format; name, source, decision (how splits were decided) and options; splits, with
    the numbers of documents, bytes of text and shards; skipped, left_out and repaired; shards,
    dropped and documents as in `Split`.
    """
    named = {split.name: split for split in splits}
    return {
        "format": FORMAT,
        **settings,
        "splits": {
            name: {
                "documents": len(named[name].documents),
                "bytes": sum(document["bytes"] for document in named[name].documents),
                "shards": len(named[name].shards),
            }
            for name in SPLITS
        },
        "skipped": dict(sorted(sum((Counter(s.skipped) for s in splits), Counter()).items())),
        "left_out": dict(sorted(left_out.items())),
        "repaired": sum(split.repaired for split in splits),
        "shards": [shard for split in splits for shard in split.shards],
        "dropped": [document for split in splits for document in split.dropped],
        "documents": [document for split in splits for document in split.documents],
    }


def write_manifest(manifest: Mapping[str, Any], file: Path) -> None:
    """Writes the manifest as JSON, a line for every item of its lists."""
    fields = []
    for name, value in manifest.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n]"
        fields.append(f"{json.dumps(name)}: {text}")
    file.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="ascii")


def summary(manifest: Mapping[str, Any]) -> str:
    """Returns lines for people: the splits, what was left out, and a warning about empty splits."""
    lines = [manifest["decision"]]
    lines += [
        f"{split + ':':<12}{total['documents']:>10,} documents {total['bytes']:>18,} bytes"
        f"{total['shards']:>7,} shards"
        for split, total in manifest["splits"].items()
    ]
    reasons = Counter(document["reason"] for document in manifest["dropped"])
    lines.append(f"dropped documents: {count_reasons(reasons)}")
    lines.append(f"skipped parts of documents: {count_reasons(manifest['skipped'])}")
    lines.append(f"left out by the source: {count_reasons(manifest['left_out'])}")
    lines.append(f"repaired, with invalid bytes: {manifest['repaired']:,} documents")
    empty = [split for split, total in manifest["splits"].items() if not total["documents"]]
    if empty:
        lines.append(
            f"WARNING: no documents for {' and '.join(empty)}: raise --validation_percent and "
            "--test_percent if they are to be there, or add documents."
        )
    return "\n".join(lines)
