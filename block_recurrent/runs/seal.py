"""The seal of a checkpoint: the checksum of every file in its folder.

Orbax notices no damage. The seal is written before the folder gets its name, and is checked before
anything is restored.
"""

import errno
import zlib
from pathlib import Path
from typing import Any

from block_recurrent.runs.errors import CheckpointError, Damaged
from block_recurrent.system.digests import digest, seal, unseal
from block_recurrent.system.files import PARTIAL, flush_folder, flush_to_disk, reason

FORMAT = 2
SEAL = "seal.json"
CHUNK = 1 << 17  # bytes that are read at once; larger ones are slower
LOSS = "loss.json"  # has a checksum of its own, for it may be added later
# The seal itself, and what is written after it: nothing that a restore needs.
UNSEALED = {SEAL, "_CHECKPOINT_METADATA", "commit_success.txt", LOSS, LOSS + PARTIAL}
# The file is not unreadable at present; it is gone, or its disk has lost it.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


def write_seal(folder: Path, step: int) -> None:
    """Writes the checksums of all files in a folder, and returns when everything is on the disk.

    Raises:
      OSError: a file cannot be read, or the seal cannot be written.
    """
    flush_folder(folder)
    files = {name: _checksum(folder / name) for name in _files_in(folder)}
    (folder / SEAL).write_text(seal({"format": FORMAT, "step": step, "files": files}))
    flush_to_disk(folder / SEAL)
    flush_to_disk(folder)


def check_seal(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Checks the files of a checkpoint against its seal.

    Args:
      folder: the checkpoint; its name is its step.
      part: which part of the files to read, from 0. The list of files is always checked.
      parts: number of parts, one for each process.

    Raises:
      Damaged: a file is damaged, missing, or was added; the message names it.
      CheckpointError: a file cannot be read at present, or the format is another.
    """
    try:
        files = _read_seal(folder)
        for name in sorted({*_files_in(folder)} ^ files.keys()):
            problem = "is missing" if name in files else "does not belong there"
            raise Damaged(f"{folder / name} {problem}")
        for name in sorted(files)[part::parts]:
            if _checksum(folder / name) != files[name]:
                raise Damaged(f"{folder / name} is damaged")
    except OSError as error:
        kind = Damaged if error.errno in GONE else CheckpointError
        path = error.filename or folder
        raise kind(f"{path} cannot be read ({reason(error)})") from error


def fingerprint(folder: Path) -> str:
    """The SHA-256 of a checkpoint's seal, which identifies its files."""
    return digest((folder / SEAL).read_bytes())


def _read_seal(folder: Path) -> dict[str, str]:
    """The checksum of every file of a checkpoint, by path."""
    path = folder / SEAL
    try:
        contents: dict[str, Any] = unseal(path.read_bytes())
        written, step, files = contents["format"], contents["step"], contents["files"]
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} cannot be read ({reason(error)})") from error
    if written != FORMAT:
        raise CheckpointError(
            f"{path} has format {written}, but this version reads and writes format {FORMAT}: use "
            "the version that wrote it"
        )
    if str(step) != folder.name:
        raise Damaged(f"{path} belongs to checkpoint {step}")
    return files


def _checksum(path: Path) -> str:
    """The CRC-32 of a file, which takes a third of the time of a SHA-256."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def _files_in(folder: Path) -> list[str]:
    """Paths of all sealed files relative to the folder."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path not in UNSEALED)
