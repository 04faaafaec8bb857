"""Which arrays of a checkpoint each process writes: whole ones, about as many bytes as others."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import fetch


def own_share(arrays: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, dict[str, np.ndarray]]:
    """Copies of the arrays that this process writes; all processes have to call it.

    Args:
      arrays: by file and name.

    Returns:
      The same, with a name of its own for every file of which others write a part.
    """
    shares = shared_out(arrays, processes.count())
    copies: Any = [
        jax.tree.map(lambda array, writer=writer: fetch(array, writer), share)
        for writer, share in enumerate(shares)
    ]
    return copies[processes.index()]


def shared_out(arrays: Mapping[str, Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """The arrays by the process that writes them, file and name.

    Args:
      arrays: by file and name; what each process gets depends on their sizes alone.
      count: how many processes there are.
    """
    if count == 1:
        return [dict(arrays)]
    shares: list[dict[str, Any]] = [{} for _ in range(count)]
    loads = [0] * count
    listed = [
        (array.nbytes, file, name, array)
        for file, named in arrays.items()
        for name, array in named.items()
    ]
    for nbytes, file, name, array in sorted(listed, key=lambda found: -found[0]):
        writer = loads.index(min(loads))
        loads[writer] += nbytes
        shares[writer].setdefault(part_of(file, writer, count), {})[name] = array
    return shares


def part_of(file: str, writer: int, count: int) -> str:
    """The name of what one of several processes writes of a file."""
    stem, dot, ending = file.rpartition(".")
    return f"{stem}-{writer + 1:05}-of-{count:05}{dot}{ending}"


def file_of(part: str) -> str:
    """The file that is written, or written a part of, under a name."""
    return re.sub(r"-\d{5}-of-\d{5}(?=\.)", "", part)
