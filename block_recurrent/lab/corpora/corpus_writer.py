"""Writes what a source gives as a directory that tensorflow-datasets reads, with a manifest.

Everything is written to `<directory>.partial`, which becomes `<directory>` when it is complete: a
corpus is never there by halves. A call that was stopped or killed is continued by the same call, to
the same bytes.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from block_recurrent.data.errors import DataError
from block_recurrent.lab.corpora.entries import Source
from block_recurrent.lab.corpora.journal import Partial
from block_recurrent.lab.corpora.manifest import make_manifest, shard_files, write_manifest
from block_recurrent.lab.corpora.passes import ORDER, Interrupted, Pass, Progress
from block_recurrent.lab.corpora.portions import Portion
from block_recurrent.lab.corpora.shards import WriteError, describe, writing
from block_recurrent.system.files import flush_folder, put_in_place

__all__ = ["SHARD_BYTES", "Interrupted", "Progress", "check_options", "check_target", "prepare"]

SHARD_BYTES = 64 * 2**20


def prepare(
    source: Source,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    validation_percent: int = 1,
    test_percent: int = 1,
    limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    restart: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], object] = lambda progress: None,
    stop: Callable[[], object] = lambda: False,
) -> dict[str, Any]:
    """Writes a corpus and returns its manifest (see `make_manifest`).

    The features are those of the data set `pg19` and `source`, the document's id; `book_id` is the
    document's number where it has one, else the running number of the documents kept. Documents of
    only whitespace are dropped, and those whose text is also in another split: train loses to
    validation, validation to test.

    Args:
      source: gives the documents, and the splits if it has its own.
      directory: the directory that the corpus is to be.
      name: the name of the data set, by default the source's.
      validation_percent, test_percent: shares of the documents, where the source has no splits.
      limit: at most so many documents of each split, for trying out.
      shard_bytes: a shard is finished when its records have so many bytes.
      restart: throw away what an earlier call left unfinished.
      overwrite: replace the corpus that is there already.
      report: called with the progress after every document.
      stop: asked after every document; if it says so, Interrupted is raised.

    Raises:
      DataError: if an option is out of range, the directory exists, an unfinished one was begun
        with other options, documents share an id, there is no document, the raw data is damaged,
        or the disk is full. What was finished before stays for the next call.
      Interrupted: if `stop` says so.
    """
    name = source.name if name is None else name
    settings = {
        "name": name,
        "source": source.name,
        "options": {
            **source.options,
            "validation_percent": validation_percent,
            "test_percent": test_percent,
            "limit": limit,
            "shard_bytes": shard_bytes,
        },
    }
    check_options(name, validation_percent, test_percent, limit, shard_bytes)
    target = Path(os.path.abspath(directory))
    check_target(target, overwrite=overwrite)
    path = target.with_name(target.name + ".partial")
    with writing(path):
        partial = Partial(path, settings, restart=restart)
    with closing(partial):
        work = Pass(source, settings, partial, report, stop)
        try:
            work.run()
            manifest = _complete(partial, settings, work, target)
        except WriteError as error:
            raise _explained(error, path, work.needed()) from error
    partial.remove()
    return manifest


def check_options(
    name: str | None,
    validation_percent: int,
    test_percent: int,
    limit: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Raises DataError for an option of `prepare` that is out of range."""
    if name is not None and not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise DataError(f"name = {name!r} must be of small letters, digits and _, a letter first.")
    for option, value in [("validation", validation_percent), ("test", test_percent)]:
        if value not in range(101):
            raise DataError(f"{option}_percent = {value} must be a whole number from 0 to 100.")
    if validation_percent + test_percent > 100:
        raise DataError(
            f"validation_percent = {validation_percent} and test_percent = {test_percent} are more "
            "than 100 together: lower one."
        )
    for option, value in [("limit", 1 if limit is None else limit), ("shard_bytes", shard_bytes)]:
        if value < 1:
            raise DataError(f"{option} = {value} must be at least 1.")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises DataError if a corpus cannot be put there."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / "dataset_info.json").exists():
        raise DataError(f"{target} exists and is no corpus: choose another --output.")
    if not overwrite:
        raise DataError(
            f"{target} is a corpus already: choose another --output, or --overwrite to replace it."
        )


def _complete(
    partial: Partial, settings: Mapping[str, Any], work: Pass, target: Path
) -> dict[str, Any]:
    """Adds the descriptions, and puts the corpus in its place."""
    corpus, portions = partial.corpus, partial.portions
    manifest = make_manifest(settings, portions, work.left_out)
    with writing(corpus):
        for portion, file in zip(portions, shard_files(portions), strict=True):
            if portion.shard and (corpus / portion.shard.file).exists():
                (corpus / portion.shard.file).rename(corpus / file)
        describe(corpus, settings["name"], work.examples.features, _splits(portions))
        write_manifest(manifest, corpus / "manifest.json")
        flush_folder(corpus)
    with writing(target):
        _move(corpus, target)
    return manifest


def _splits(portions: Sequence[Portion]) -> dict[str, tuple[list[int], int]]:
    splits = {}
    for split in ORDER:
        written = [(b, b.shard) for b in portions if b.split == split and b.shard]
        if written:
            lengths = [len(portion.kept()) for portion, _ in written]
            splits[split] = lengths, sum(shard.record_bytes for _, shard in written)
    return splits


def _move(corpus: Path, target: Path) -> None:
    """Puts the corpus in its place; what is there already goes only when that is done."""
    old = target.with_name(target.name + ".replaced")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    put_in_place(corpus, target)
    if old.exists():
        shutil.rmtree(old)


def _explained(error: WriteError, path: Path, needed: int) -> DataError:
    if not error.full:
        return DataError(f"{error}; when it can be, the same command goes on from {path}.")
    return DataError(
        f"{error}; free about {needed / 1e6:,.0f} MB, then the same command goes on from {path}."
    )
