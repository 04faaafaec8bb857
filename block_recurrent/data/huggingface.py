"""Data sets of Hugging Face, through the package `datasets`: a folder, or a name on the hub."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any

from block_recurrent.config import Download
from block_recurrent.data.documents import DataError
from block_recurrent.data.records import PUBLISHED, Columns, Row
from block_recurrent.data.splits import decide_splits
from block_recurrent.data.text_files import Record, TextFile, record_of
from block_recurrent.system.extras import MissingPackage, require


class HubDataset:
    """The splits of a data set, read as `TextFiles` reads files: every row is a record.

    Args:
      path: a folder, which is streamed and not copied; or a name on the hub, where a configuration
        follows a colon ("wikitext:wikitext-103-raw-v1").
      columns: what the fields of a record are called.
      split_by: "names" of the splits, or "hash" to ignore them, see `decide_splits`.
      download: of a name: "never" reads only what Hugging Face's cache holds, "cache" downloads the
        data set there, "stream" downloads rows as they are read.

    Attributes:
      files: the splits.
      left_out: empty; everything is read.
      decision: a line for people: how the splits were decided.

    Raises:
      DataError: there is no such data set, or it cannot be read.
      MissingPackage: `datasets` is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns = PUBLISHED,
        split_by: str = "names",
        download: Download = "never",
    ):
        self.left_out: Counter[str] = Counter()
        self._columns, self._path = columns, os.fspath(path)
        self._splits = _load(self._path, download)
        names = [str(name) for name in self._splits]
        among, self.decision = decide_splits([PurePath(name) for name in names], split_by)
        self.files = [
            TextFile(Path(path), name, splits, is_document=False)
            for name, splits in zip(names, among, strict=True)
        ]

    def records(self, file: TextFile) -> Iterator[Record]:
        """Yields the documents of a split, or their parts.

        Raises:
          DataError: it is damaged, or a record has no text. The message names it.
        """
        with _errors(f"{self._path}, {file.name}"):
            for number, values in enumerate(self._splits[file.name], start=1):
                row = Row(values, f"{self._path}, {file.name} {number}")
                yield record_of(row, self._columns, f"{file.name}:{number}")


def _load(path: str, download: Download) -> Mapping[str, Any]:
    """Returns the rows of every split."""
    datasets = require("datasets", "huggingface")
    folder = Path(path)
    with _errors(path):
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(path)
        elif folder.is_dir():
            found = datasets.load_dataset(path, streaming=True)
        else:
            name, _, configuration = path.partition(":")
            with nullcontext() if download != "never" else _offline():
                found = datasets.load_dataset(
                    name, configuration or None, streaming=download == "stream"
                )
    return found if isinstance(found, dict) else {"train": found}


@contextmanager
def _offline() -> Iterator[None]:
    """Keeps `datasets` from the network."""
    config = require("datasets.config", "huggingface")
    modules = [config, require("huggingface_hub.constants", "huggingface")]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, offline in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = offline


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Turns what `datasets` raises, which has no common kind, into a DataError."""
    try:
        yield
    except (DataError, MissingPackage):
        raise
    except Exception as error:
        raise DataError(
            f"{where} cannot be read by `datasets`: {error}; correct the path or the name. A data "
            "set that is not in Hugging Face's cache needs data.download = 'cache' or 'stream'."
        ) from error
