"""Arrays in one file, as safetensors, each with its digest beside it.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every
array), and then the arrays, one after the other, little-endian in C order. Other programs read it
too. Here the header is known before it is read, from the same list of arrays that has their
digests, so that a file is either what was written or noticed to be something else.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from block_recurrent.runs.errors import Damaged
from block_recurrent.system.digests import digest, new_digest

# Names of safetensors.
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
AT_ONCE = 1 << 20  # bytes, so few that they are still in the processor's cache when digested


class Entry(NamedTuple):
    """An array in a file: its dtype, its shape and its XXH3."""

    dtype: str
    shape: list[int]
    xxh3: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * jnp.dtype(self.dtype).itemsize


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Entry]:
    """Writes arrays by name to a new file; returns what `read_arrays` wants to know.

    Raises:
      OSError: they cannot be written.
    """
    entries = {
        name: Entry(str(array.dtype), list(array.shape), digest(_bytes_of(array)))
        for name, array in arrays.items()
    }
    with path.open("xb") as file:
        file.write(_header(entries))
        for array in arrays.values():
            file.write(_bytes_of(array))
    return entries


def read_arrays(path: Path, entries: Mapping[str, Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a file with its name, in order, as it was written.

    Raises:
      Damaged: it is not as it was written; the message names the file.
      OSError: it cannot be read at present.
    """
    with path.open("rb", buffering=0) as file:
        _check_header(file, path, entries)
        for name, entry in entries.items():
            array = np.empty(entry.shape, jnp.dtype(entry.dtype))
            if _read_into(file, _bytes_of(array)) != entry.xxh3:
                raise Damaged(f"array {name} in {path} is not the one that was written")
            yield name, array


def _check_header(file: BinaryIO, path: Path, entries: Mapping[str, Entry]) -> None:
    header = _header(entries)
    size = os.fstat(file.fileno()).st_size
    written = len(header) + sum(entry.nbytes for entry in entries.values())
    if size != written:
        raise Damaged(f"{path} has {size:,} bytes, {written:,} were written")
    if file.read(len(header)) != header:
        raise Damaged(f"the content of {path} has changed")


def _read_into(file: BinaryIO, target: memoryview) -> str:
    """Fills `target` from a file as far as that goes; returns the digest of what was read."""
    found, begin = new_digest(), 0
    while count := file.readinto(target[begin : begin + AT_ONCE]):  # type: ignore[attr-defined]
        found.update(target[begin : begin + count])
        begin += count
    return found.hexdigest()


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8).data


def _header(entries: Mapping[str, Entry]) -> bytes:
    listed, end = {}, 0
    for name, entry in entries.items():
        begin, end = end, end + entry.nbytes
        place = {"dtype": DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": [begin, end]}
        listed[name] = place
    text = json.dumps(listed).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
