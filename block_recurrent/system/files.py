"""Files and folders that appear whole on the disk or not at all, and a lock for one process."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
LONGEST = 300  # characters of an error that are worth showing


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader finds the old content or the new one, also after a crash.

    Until it is whole, the file has another name, which ends in `PARTIAL`. Text is encoded as UTF-8.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write a file to, within the context, that gets its name only when it is whole.

    An error within the context removes it.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path, building: Path) -> Iterator[Path]:
    """A new folder, filled within the context, that gets its final name only when it is whole.

    An error within the context removes it.

    Args:
      folder: its final name.
      building: its name until then, in the same parent folder; it must not exist yet.

    Raises:
      OSError: it cannot be made, or `folder` exists and is not empty.
    """
    building.mkdir()
    try:
        yield building
        put_in_place(building, folder)
    except BaseException:
        remove(building)
        raise


def put_in_place(building: Path, folder: Path) -> None:
    """Flushes a folder and all files in it to the disk, renames it, and flushes the new name.

    Raises:
      OSError: it cannot be renamed, or `folder` exists and is not empty.
    """
    flush_folder(building)
    building.rename(folder)
    flush_to_disk(folder.parent)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it that are missing, and flushes their names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with contextlib.suppress(PermissionError):  # to read a folder that one may write to
            flush_to_disk(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flushes a folder, and everything in it, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)


def flush_to_disk(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def hold(path: Path) -> BinaryIO:
    """Opens a file for reading and appending, and locks it until it is closed.

    The system closes it when the process ends, for whatever reason.

    Args:
      path: of the file, which is created if it does not exist. The process that holds it may
        remove it.

    Raises:
      BlockingIOError: another process holds it.
      OSError: it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the process that held it has removed it since it was opened


def reason(error: BaseException) -> str:
    """The message of an error in one line, without the file name of an OSError."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."
