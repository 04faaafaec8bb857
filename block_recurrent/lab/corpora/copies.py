"""Near copies among texts, found by MinHash and locality-sensitive hashing.

The similarity of two texts is the share of runs of `WORDS` words, with white space between words,
that both have among those that either has (Jaccard). It is estimated from the smallest values of
`HASHES` hash functions (Broder 1997, "On the resemblance and containment of documents"), with a
standard error of 0.035 at `SIMILARITY`. Two texts that differ in every twentieth word have
similarity 0.6.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from block_recurrent.system.extras import require

WORDS = 5
SIMILARITY = 0.8
HASHES = 128
SETTINGS = {"words": WORDS, "similarity": SIMILARITY, "hashes": HASHES}
# Texts are compared if their values are the same in one of 16 bands of 8. At a similarity of 0.8
# that leaves out one pair of 19, at 0.9 one of 8,000.
_BANDS = (16, 8)
_FUNCTIONS = {"seed": 1, "scheme": "affine32"}  # values of 32 bits
_BATCH = 1024  # runs that are hashed at once


class Copies:
    """Finds texts that are nearly copies of texts before them.

    Raises:
      MissingPackage: datasketch is not installed.
    """

    def __init__(self) -> None:
        self._datasketch = require("datasketch", "data")
        self._index = self._datasketch.MinHashLSH(num_perm=HASHES, params=_BANDS)
        self._texts: list[Any] = []

    def add(self, text: str) -> str | None:
        """Remembers a text and returns its signature, or None if it is nearly a copy."""
        words = text.split()
        ends = range(WORDS, max(len(words), WORDS) + 1)
        hashed = self._datasketch.MinHash(HASHES, hashfunc=zlib.crc32, **_FUNCTIONS)
        for begin in range(0, len(ends), _BATCH):
            batch = ends[begin : begin + _BATCH]
            hashed.update_batch([" ".join(words[end - WORDS : end]).encode() for end in batch])
        similar = (self._texts[number] for number in self._index.query(hashed))
        if any(other.jaccard(hashed) >= SIMILARITY for other in similar):
            return None
        self._remember(hashed.hashvalues)
        return hashed.hashvalues.astype("<u4").tobytes().hex()

    def restore(self, signatures: Iterable[str]) -> None:
        """Remembers texts by the signatures that `add` has given."""
        for signature in signatures:
            self._remember(np.frombuffer(bytes.fromhex(signature), "<u4"))

    def _remember(self, values: np.ndarray) -> None:
        text = self._datasketch.LeanMinHash(hashvalues=values, **_FUNCTIONS)
        self._index.insert(len(self._texts), text)
        self._texts.append(text)
