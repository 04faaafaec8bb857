"""Digests of files and of arrays: whether a checkpoint is what was written.

XXH3 reads as fast as memory gives, so that checking costs little beside restoring.
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

FILES = "files.json"
LARGE = 1 << 20  # bytes; smaller files are checked before anything reads them
FORMAT = 1  # of checkpoints
# What is not so much unreadable as not there, or on a disk that has lost it.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}
LONGEST = 300  # characters of an error that are worth showing


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit the model; the message says how."""


class Damaged(CheckpointError):
    """A checkpoint is not as it was written; the message names the file or array."""


def reason(error: BaseException) -> str:
    """What an error says, in a few words; of Orbax's, which fill a screen, that of the system."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    if number := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(number[1]))
    first = text.splitlines()[0]
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."


def seal(value: Any) -> str:
    """JSON text of a value and of its digest."""
    digest = xxhash.xxh3_64_hexdigest(json.dumps(value).encode())
    return json.dumps({"value": value, "xxh3": digest})


def unseal(text: bytes) -> Any:
    """The value that was sealed.

    Raises:
      ValueError: the text is not what `seal` made.
    """
    sealed = json.loads(text)
    value = sealed.get("value") if isinstance(sealed, dict) else None
    if seal(value).encode() != text:
        raise ValueError("its digest differs")
    return value


def write_file_digests(folder: Path, name: str) -> None:
    """Writes size and digest of every file below `folder` to its `files.json`.

    Args:
      folder: of the checkpoint.
      name: that the folder is to have.
    """
    digests = {name: _file_digest(path) for name, path in _files(folder).items()}
    (folder / FILES).write_text(seal({"format": FORMAT, "name": name, "files": digests}))


def check_files(folder: Path, *, large: bool) -> None:
    """Sees to it that the files of a checkpoint are as they were written.

    Args:
      folder: of the checkpoint.
      large: compare the content of the large files, else of the small ones; names and sizes of
        all are compared in any case.

    Raises:
      Damaged: a file is not as it was; the message names it.
      CheckpointError: it cannot be known, for a file cannot be opened or read at present, or is
        of another format.
    """
    expected = _listed(folder)
    try:
        found = _files(folder)
        _compare_sizes(folder, expected, found)
        for name, path in found.items():
            if (expected[name][0] >= LARGE) == large and _file_digest(path) != expected[name]:
                raise Damaged(f"the content of {path} has changed")
    except OSError as error:
        raise _unreadable(error, folder) from error


def _unreadable(error: OSError, path: Path) -> CheckpointError:
    sentence = f"{error.filename or path} cannot be read ({reason(error)})"
    return Damaged(sentence) if error.errno in GONE else CheckpointError(sentence)


def _listed(folder: Path) -> dict[str, list[Any]]:
    path = folder / FILES
    try:
        listed = unseal(path.read_bytes())
        name, digests, written = listed["name"], listed["files"], listed["format"]
    except OSError as error:
        raise _unreadable(error, path) from error
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} cannot be read ({reason(error)})") from error
    if written != FORMAT:
        raise CheckpointError(
            f"{path} is of format {written}, this version reads and writes {FORMAT}: use the "
            "version that wrote it"
        )
    if name != folder.name:
        raise Damaged(f"{path} is of checkpoint {name}")
    return digests


def _compare_sizes(folder: Path, expected: dict[str, list[Any]], found: dict[str, Path]) -> None:
    for name in sorted({*expected, *found}):
        if name not in found:
            raise Damaged(f"{folder / name} is missing")
        if name not in expected:
            raise Damaged(f"{folder / name} does not belong there")
        size, written = found[name].stat().st_size, expected[name][0]
        if size != written:
            raise Damaged(f"{folder / name} has {size:,} bytes, {written:,} were written")


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder, but not the list of their digests."""

    def fail(error: OSError) -> None:
        raise error

    # Not `rglob`, for which a folder that cannot be read is an empty one.
    walked = os.walk(folder, onerror=fail)
    paths = sorted(Path(root, name) for root, _, names in walked for name in names)
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if name != FILES}


def _file_digest(path: Path) -> list[Any]:
    """Size and XXH3 of a file."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
        return [file.tell(), digest]


def array_digests(tree: Any) -> dict[str, list[Any]]:
    """XXH3, shape and dtype of every array of a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _array_digest(array) for path, array in leaves}


def _array_digest(array: Any) -> list[Any]:
    values = np.asarray(array)
    digest = xxhash.xxh3_64_hexdigest(np.ravel(values).view(np.uint8).data)
    return [digest, list(values.shape), str(values.dtype)]
