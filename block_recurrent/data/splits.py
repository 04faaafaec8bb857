"""Which split a document belongs to: by the names of files and folders, or by a hash of its id."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from block_recurrent.data.documents import SPLITS, DataError, split_of

_SPLIT_OF_NAME = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "holdout": "validation",
    "test": "test",
    "eval": "eval",  # validation, or test beside files for validation
}
_MOST_LISTED = 5
BY_HASH = "--split_by=hash, or data.split_by = 'hash', ignores all names"


class Decision(NamedTuple):
    """The splits of the files of a corpus.

    Attributes:
      among: for each file the splits that its documents may belong to; of several, a hash of a
        document's id chooses one (`choose_split`).
      reason: a line for people: what decided, and how many files there are of each kind.
    """

    among: list[tuple[str, ...]]
    reason: str


def decide_splits(paths: Sequence[PurePath], split_by: str = "names") -> Decision:
    """Decides to which splits files belong, so that held-out text stays held out.

    A name means a split if one of its parts between dots, dashes and underscores does: train and
    training; validation, valid, val, dev and holdout; test. "eval" means test if other files are
    for validation, else it means validation. A folder decides before the name of a file does. If
    no file is for validation, the documents of train are shared by a hash of their ids, and if all
    names mean train, those of test too; if no name means a split, all documents are.

    Args:
      paths: of the files, relative to what the user has named.
      split_by: "names", or "hash" to ignore all names.

    Raises:
      DataError: a name means several splits, or only some of the names mean one.
    """
    if split_by == "hash":
        return Decision([SPLITS] * len(paths), "splits: by a hash of each document's id, as asked")
    named = [_named_split(path) for path in paths]
    found = set(named) - {None}
    if not found:
        reason = "splits: by a hash of each document's id; no file or folder is called after one"
        return Decision([SPLITS] * len(paths), reason)
    if None in named:
        without = [path for path, name in zip(paths, named, strict=True) if name is None]
        raise DataError(
            f"some files are called after a split, {_listed(without)} not: put every file into a "
            f"folder train, validation or test, or rename it; {BY_HASH}."
        )
    if found == {"train"}:
        reason = "splits: by a hash of each document's id; all files are called train"
        return Decision([SPLITS] * len(paths), reason)
    evaluation = "test" if "validation" in found else "validation"
    splits = [evaluation if name == "eval" else name for name in named if name is not None]
    shared = ("train",) if "validation" in splits else ("train", "validation")
    counts = Counter(splits)
    files = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in counts)
    reason = f"splits: by the names of files and folders ({files} files)"
    if "train" in splits and len(shared) == 2:
        reason += "; validation is a share of train, by a hash of each document's id"
    return Decision([shared if split == "train" else (split,) for split in splits], reason)


def choose_split(
    document_id: str, among: Sequence[str], validation_percent: int, test_percent: int = 0
) -> str:
    """Returns the split of a document among those of its file, see `split_of`."""
    if len(among) == 1:
        return among[0]
    return split_of(document_id, validation_percent, test_percent if "test" in among else 0)


def _named_split(path: PurePath) -> str | None:
    """Returns the split that a path means, or None."""
    for names in (path.parts[:-1], path.parts[-1:]):
        parts = (part.casefold() for name in names for part in re.split(r"[._-]", name))
        found = sorted({_SPLIT_OF_NAME[part] for part in parts if part in _SPLIT_OF_NAME})
        if len(found) > 1:
            raise DataError(
                f"{path} is called after several splits, {' and '.join(found)}: rename it; "
                f"{BY_HASH}."
            )
        if found:
            return found[0]
    return None


def _listed(paths: Sequence[PurePath]) -> str:
    """Returns the first of some paths, and how many more there are."""
    names = ", ".join(map(str, paths[:_MOST_LISTED]))
    more = len(paths) - _MOST_LISTED
    return names + (f" and {more:,} more" if more > 0 else "")
