"""Files that are there as a whole or not at all, and on the disk."""

import os
from pathlib import Path

PARTIAL = ".partial"


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


def flush_to_disk(path: Path) -> None:
    """Returns when a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
