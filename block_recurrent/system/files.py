"""Files and folders that are there as a whole or not at all, and on the disk."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"
LONGEST = 300  # characters of an error that are worth showing


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file; whoever reads it, also after a crash, finds the old content or the new.

    Until it is whole it has another name, which ends in `PARTIAL`. Text is written as UTF-8.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path, building: Path) -> Iterator[Path]:
    """A new folder, to be filled within the context, that is at its place as a whole or not at all.

    What an error within the context leaves of it is removed.

    Args:
      folder: the name that it has in the end.
      building: the name that it has until then, in the same folder; nothing has it yet.

    Raises:
      OSError: it cannot be made, or `folder` is there and is not empty.
    """
    building.mkdir()
    try:
        yield building
        put_in_place(building, folder)
    except BaseException:
        remove(building)
        raise


def put_in_place(building: Path, folder: Path) -> None:
    """Renames a folder when all that is in it is on the disk; returns when its name is as well.

    Raises:
      OSError: it cannot be, or `folder` is there and is not empty.
    """
    flush_folder(building)
    building.rename(folder)
    flush_to_disk(folder.parent)


def flush_folder(folder: Path) -> None:
    """Returns when a folder and all that is in it are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)


def flush_to_disk(path: Path) -> None:
    """Returns when a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def reason(error: BaseException) -> str:
    """What an error says, on one line; of an error of the system, what is wrong."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."
