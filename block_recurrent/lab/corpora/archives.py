"""Archives that may be hostile, read into memory and within bounds; nothing is written to disk.

A tar file, a gzip file of a tar file or of one file, and a plain folder all become the same thing:
relative POSIX paths and bytes. What a file is follows from its content, not from its name.
A tar file of archives is listed by its headers alone, and each of its parts is read by its offset.

No member outside the root is read: absolute names, "..", drive letters and backslashes are skipped
and counted, and so are links, devices and pipes, which are never followed. Of several files with
one name the last one counts, as when tar unpacks them.
"""

import gzip
import io
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from block_recurrent.data.documents import DataError
from block_recurrent.data.json_lines import read_within
from block_recurrent.lab.corpora.entries import Unusable

PDF_ONLY = "PDF only"
TOO_LARGE = "archive too large"

_BLOCK = tarfile.BLOCKSIZE
_FOLDER = "folder"
_DRIVE = re.compile("[A-Za-z]:")
# What tarfile and gzip raise for damaged input; a chain of long names exhausts the recursion.
_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, LookupError, ArithmeticError)
_DAMAGE += (zlib.error, RecursionError)


# The most bytes that a file may have that is kept, that all files may have (of a folder only those
# that are kept), and the greatest number of members, or of files in a folder.
MEMBER_BYTES = 2**26
TOTAL_BYTES = 2**29
MEMBERS = 10_000


class Part(NamedTuple):
    """A file inside a tar file that is not compressed.

    Attributes:
      archive: the tar file.
      name: its relative POSIX path there.
      offset, size: where its content begins, and how long it is, in bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}, member {self.name!r}"


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


# A member: its name, why it is refused or "", and what reads it.
_Member = tuple[str, str, Callable[[], bytes]]


def read_archive(
    path: Path | Part, *, wanted: Callable[[str], bool] = lambda name: True
) -> Unpacked:
    """Returns the files of an archive or a folder.

    Args:
      path: a `.tar`, `.tar.gz` or `.tgz` file, a `.gz` of one file, whose name is then the path's
        without the extension, or a folder; also one inside a tar file.
      wanted: whether the file of this name is to be read; the others are listed in `unread`.

    Raises:
      Unusable: the archive is past a limit ("archive too large"), or a PDF file, compressed or not
        ("PDF only").
      DataError: the archive is damaged or cut short; the message names it and, where it is known,
        the member.
    """
    files: dict[str, bytes] = {}
    unread: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    left = TOTAL_BYTES
    with _naming(path):
        for number, (full_name, refusal, read) in enumerate(_members(path, skipped), 1):
            name = safe_name(full_name)
            if number > MEMBERS:
                raise Unusable(TOO_LARGE)
            if refusal == _FOLDER:
                continue
            if name is None:
                skipped["unsafe name"] += 1
            elif refusal:
                skipped[refusal] += 1
            elif not wanted(name):
                unread[name] = None
            else:
                files.pop(name, None)  # a later one of this name takes the later place
                with _naming(f"{path}, member {name!r}"):
                    files[name] = read()
                left -= len(files[name])
                if left < 0:
                    raise Unusable(TOO_LARGE)
    return Unpacked(files, tuple(unread), dict(skipped))


def _members(source: Path | Part, skipped: Counter[str]) -> Iterator[_Member]:
    if isinstance(source, Path) and source.is_dir():
        for name in files_below(source, skipped):
            yield name, "", partial(_read_file, source / name)
        return
    with open(source, "rb") if isinstance(source, Path) else _part(source) as packed:
        compressed = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        file = gzip.GzipFile(fileobj=packed, mode="rb") if compressed else packed
        head = file.read(_BLOCK)
        file.seek(0)
        if head.startswith(b"%PDF-"):
            raise Unusable(PDF_ONLY)
        is_tar = _is_tar(head)
        if not is_tar and not compressed:
            raise DataError(
                f"{source} is neither a gzip nor a tar file; fetch it again or remove it."
            )
        data = _read_within(file, TOTAL_BYTES if is_tar else min(MEMBER_BYTES, TOTAL_BYTES))
    if is_tar:
        tar = io.BytesIO(data)
        for member, refusal in _headers(tar):
            read = partial(_read_at, tar, member.offset_data, member.size, MEMBER_BYTES)
            yield member.name, refusal, read
    else:
        name = PurePosixPath(source.name).name
        yield re.sub(r"\.(tar\.gz|tgz|gz)$", "", name), "", lambda: data


def _read_file(file: Path) -> bytes:
    with file.open("rb") as opened:
        return _read_within(opened, MEMBER_BYTES)


def _read_within(file: BinaryIO | gzip.GzipFile, limit: int) -> bytes:
    """Reads to the end, where gzip compares the checksum; Unusable beyond `limit` bytes."""
    data = read_within(file, limit)
    if data is None:
        raise Unusable(TOO_LARGE)
    return data


def _part(part: Part) -> BinaryIO:
    with open(part.archive, "rb") as file:
        return io.BytesIO(_read_at(file, part.offset, part.size, TOTAL_BYTES))


def _read_at(file: BinaryIO, offset: int, size: int, limit: int) -> bytes:
    """Reads a part of a tar file; Unusable beyond `limit` bytes."""
    if size > limit:
        raise Unusable(TOO_LARGE)
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def tar_parts(path: Path, skipped: Counter[str]) -> Iterator[Part]:
    """Yields the files in a tar file that is not compressed, and nothing of any other file.

    It reads only the headers. What is refused is added to `skipped`, as in `Unpacked`.

    Raises:
      DataError: the tar file is damaged or cut short, after the parts before the damage.
    """
    with _naming(path), _Headers(path) as file:
        is_tar = _is_tar(file.read(_BLOCK))
        file.seek(0)
        for member, refusal in _headers(cast(BinaryIO, file)) if is_tar else ():
            if refusal == _FOLDER:
                continue
            if (name := safe_name(member.name)) is None or refusal:
                skipped["unsafe name" if name is None else refusal] += 1
            else:
                yield Part(path, name, member.offset_data, member.size)


class _Headers(io.FileIO):
    """A file of which no more is read at once than a header may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MEMBER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _headers(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yields the members of a tar file, and why each is refused, or ""."""
    with tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape") as archive:
        while member := archive.next():
            vars(archive)["members"].clear()  # which would grow with the archive
            if member.size < 0:
                raise tarfile.ReadError(f"member {member.name!r} has a negative size")
            refusal = "" if member.isreg() and not member.issparse() else "not a file"
            if member.issym() or member.islnk():
                refusal = "link"
            elif member.isdir():
                refusal = _FOLDER
            yield member, refusal
        file.seek(archive.offset)
        end = file.read(_BLOCK)
    if len(end) < _BLOCK or any(end):  # tarfile takes a damaged or missing header for the end
        raise tarfile.ReadError(f"no valid header and no end mark at byte {archive.offset}")


def _is_tar(head: bytes) -> bool:
    """Says whether a file beginning with these up to 512 bytes is a tar file, valid or damaged."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(head) == _BLOCK and not any(head)
    return True


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
def _naming(what: Path | Part | str) -> Iterator[None]:
    """Turns the errors of damaged input into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} cannot be read: {reason}; fetch it again or remove it.") from error
