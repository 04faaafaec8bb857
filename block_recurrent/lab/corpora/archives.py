"""Archives that may be hostile, read into memory and within bounds; nothing is written to disk.

A tar file, a gzip file of a tar file or of one file, and a plain folder all become the same thing:
relative POSIX paths and bytes. What a file is follows from its content, not from its name.

No member outside the root is read: absolute names, "..", drive letters and backslashes are skipped
and counted, and so are links, devices and pipes, which are never followed. Of several files with
one name the last one counts, as when tar unpacks them.
"""

import gzip
import io
import os
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from block_recurrent.data.documents import DataError
from block_recurrent.lab.corpora.entries import Unusable

PDF_ONLY = "PDF only"
TOO_LARGE = "archive too large"

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 2**16
_DRIVE = re.compile("[A-Za-z]:")
# What tarfile and gzip raise for damaged input; a chain of long names exhausts the recursion.
_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, LookupError, ArithmeticError)
_DAMAGE += (zlib.error, RecursionError)


class Limits(NamedTuple):
    """Bounds on one archive; an archive past any of them is Unusable("archive too large").

    Attributes:
      member_bytes: the most bytes that a file may have that is kept.
      total_bytes: the most bytes that all unpacked files may have, and so all that is held; in a
        folder only the files count that are kept.
      members: the greatest number of members, or of files in a folder.
    """

    member_bytes: int = 2**26
    total_bytes: int = 2**29
    members: int = 10_000


LIMITS = Limits()


class Unpacked(NamedTuple):
    """The regular files of an archive.

    Attributes:
      files: relative POSIX path -> bytes, in the order of the archive; sorted for a folder.
      unread: paths of the files that were not wanted.
      skipped: what was refused, as reason -> number: "unsafe name", "link", "not a file".
    """

    files: Mapping[str, bytes]
    unread: tuple[str, ...]
    skipped: Mapping[str, int]


def _everything(name: str) -> bool:
    return True


def read_archive(
    path: Path, *, limits: Limits = LIMITS, wanted: Callable[[str], bool] = _everything
) -> Unpacked:
    """Returns the files of an archive or a folder.

    Args:
      path: a `.tar`, `.tar.gz` or `.tgz` file, a `.gz` of one file, whose name is then the path's
        without the extension, or a folder.
      limits: bounds on what is unpacked.
      wanted: whether the file of this name is to be read; the others are listed in `unread`.

    Raises:
      Unusable: the archive is past a limit, or a PDF file, compressed or not ("PDF only").
      DataError: the archive is damaged or cut short; the message names it and, where it is known,
        the member.
    """
    if path.is_dir():
        return _read_folder(path, limits, wanted)
    with _naming(path), _opened(path) as file:
        head = file.read(_BLOCK)
        compressed = isinstance(file, gzip.GzipFile)
    if head.startswith(b"%PDF-"):
        raise Unusable(PDF_ONLY)
    if _is_tar(head):
        return _read_tar(path, limits, wanted)
    if not compressed:
        raise DataError(f"{path} is neither a gzip nor a tar file; fetch it again or remove it.")
    return _read_single(path, limits, wanted)


def _read_single(path: Path, limits: Limits, wanted: Callable[[str], bool]) -> Unpacked:
    name = safe_name(re.sub(r"\.(tar\.gz|tgz|gz)$", "", path.name))
    if name is None:
        return Unpacked({}, (), {"unsafe name": 1})
    if not wanted(name):
        return Unpacked({}, (name,), {})
    with _naming(path), _opened(path) as file:
        data = _Stream(file, min(limits.member_bytes, limits.total_bytes)).read()
    return Unpacked({name: data}, (), {})


def _read_tar(path: Path, limits: Limits, wanted: Callable[[str], bool]) -> Unpacked:
    files: dict[str, bytes] = {}
    unread: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    with _naming(path), _opened(path) as file:
        stream = _Stream(file, limits.total_bytes)
        for number, (archive, member) in enumerate(_members(stream), start=1):
            name = safe_name(member.name)
            if number > limits.members:
                raise Unusable(TOO_LARGE)
            if member.isdir():
                continue
            if name is None:
                skipped["unsafe name"] += 1
            elif reason := _refusal(member):
                skipped[reason] += 1
            elif not wanted(name):
                unread[name] = None
            elif member.size > limits.member_bytes:
                raise Unusable(TOO_LARGE)
            else:
                files.pop(name, None)  # a later one of this name takes the later place
                with _naming(f"{path}, member {name!r}"):
                    files[name] = _data(archive, member)
    return Unpacked(files, tuple(unread), dict(skipped))


def _members(stream: "_Stream") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with tarfile.TarFile(
        fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for member in archive:
            if member.size < 0:
                raise tarfile.ReadError(f"member {member.name!r} has a negative size")
            yield archive, member
    # tarfile takes a damaged or missing header for the end of the archive.
    if len(stream.last) < _BLOCK or any(stream.last):
        raise tarfile.ReadError(f"no valid header and no end mark before byte {stream.tell()}")
    while stream.read(_CHUNK):  # only at its end does gzip compare the checksum
        pass


def _refusal(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "" if member.isreg() and not member.issparse() else "not a file"


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _is_tar(head: bytes) -> bool:
    """Says whether a file beginning with these up to 512 bytes is a tar file, valid or damaged."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(head) == _BLOCK and not any(head)
    return True


def _read_folder(path: Path, limits: Limits, wanted: Callable[[str], bool]) -> Unpacked:
    files: dict[str, bytes] = {}
    unread: list[str] = []
    skipped: Counter[str] = Counter()
    left = limits.total_bytes
    for number, name in enumerate(files_below(path, skipped), start=1):
        if number > limits.members:
            raise Unusable(TOO_LARGE)
        if not wanted(name):
            unread.append(name)
            continue
        with _naming(path / name), open(path / name, "rb") as file:
            files[name] = _Stream(file, min(limits.member_bytes, left)).read()
        left -= len(files[name])
    return Unpacked(files, tuple(unread), dict(skipped))


def files_below(root: Path, skipped: Counter[str]) -> Iterator[str]:
    """Yields the relative POSIX paths of the regular files below a folder.

    Depth first: the files of a folder, then its subfolders, both sorted by the bytes of their
    names. What is not followed is added to `skipped`, as in `children`.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        files, subfolders = children(root / folder, skipped)
        yield from (folder + name for name in files)
        folders += [f"{folder}{name}/" for name in reversed(subfolders)]


def children(folder: Path, skipped: Counter[str]) -> tuple[list[str], list[str]]:
    """Returns the names of the files and of the folders in a folder, sorted by their bytes.

    Links, devices, pipes and names with a backslash or a drive letter are added to `skipped`.

    Raises:
      DataError: the folder cannot be listed.
    """
    files, folders = [], []
    with _naming(folder), os.scandir(folder) as entries:
        for entry in entries:
            if safe_name(entry.name) is None:
                skipped["unsafe name"] += 1
            elif entry.is_symlink():
                skipped["link"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            else:
                skipped["not a file"] += 1
    return sorted(files, key=os.fsencode), sorted(folders, key=os.fsencode)


def safe_name(name: str) -> str | None:
    """Returns a member's name as a path inside the root, or None if it could lead out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        return None
    return None if _DRIVE.match("/".join(parts)) else "/".join(parts) or None


@contextmanager
def _naming(what: Path | str) -> Iterator[None]:
    """Turns the errors of damaged input into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} cannot be read: {reason}; fetch it again or remove it.") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Opens a file; its bytes are the unpacked ones if it is compressed by gzip."""
    with open(path, "rb") as file:
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            yield unpacked


class _Stream(io.RawIOBase):
    """A file that is read forward only, and no further than `limit` bytes: then it is Unusable.

    Attributes:
      last: the bytes of the last read.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile, limit: int):
        self._file, self._limit, self._position = file, limit, 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        pieces, left = [], sys.maxsize if size < 0 else size
        while piece := self._file.read(min(_CHUNK, left)):
            self._position += len(piece)
            if self._position > self._limit:
                raise Unusable(TOO_LARGE)
            pieces.append(piece)
            left -= len(piece)
        self.last = b"".join(pieces)
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET or offset < self._position:
            raise OSError(f"the archive leads back to byte {offset}")
        while self._position < offset and self.read(min(_CHUNK, offset - self._position)):
            pass
        return self._position
