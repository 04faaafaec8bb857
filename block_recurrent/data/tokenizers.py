"""Tokenizers turn text into token ids, and token ids into text.

`Tokenizer` is what a tokenizer has to offer. Bytes need nothing else; `vocabularies` has the
tokenizers that need a file.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from block_recurrent.data.documents import DataError


class Tokenizer(Protocol):
    """What corpora, metrics and sampling need of a tokenizer: three facts and three methods."""

    @property
    def name(self) -> str:
        """The identity of the tokenizer: equal names give equal tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary. Token ids are 0 to V - 1."""
        ...

    @property
    def beginning_of_document(self) -> int:
        """The id that is the input of a document's first target. It is never added as a target."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Returns the token ids of `text`, [n] int32, without the beginning of the document."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the token ids [n]."""
        ...

    def spellings(self) -> list[bytes]:
        """Returns the UTF-8 bytes of each id of the vocabulary, [V]."""
        ...


class ByteTokenizer:
    """One token per byte of the UTF-8 text, ids 0 to 255: `decode(encode(text)) == text`.

    Id 0, the byte NUL, also begins a document. There it is only ever an input, so a NUL in a text
    stays an ordinary byte and nothing is lost.
    """

    name = "bytes"
    vocab_size = 256
    beginning_of_document = 0

    def encode(self, text: str) -> np.ndarray:
        """Returns the UTF-8 bytes of `text`, [n] int32.

        Raises:
          UnicodeEncodeError: the text has lone surrogates, which UTF-8 cannot encode.
        """
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the bytes [n]; invalid UTF-8, as in a cut character, is U+FFFD.

        Raises:
          DataError: an id is not a byte.
        """
        return (
            check_ids(tokens, 256, "a byte").astype(np.uint8).tobytes().decode("utf-8", "replace")
        )

    def spellings(self) -> list[bytes]:
        """Returns every byte."""
        return [bytes([byte]) for byte in range(256)]


def check_ids(tokens: Sequence[int] | np.ndarray, vocab_size: int, what: str) -> np.ndarray:
    """Returns token ids as [n] int64.

    Args:
      tokens: the ids, [n].
      vocab_size: they must be below it, and at least 0.
      what: what an id stands for, for the message.

    Raises:
      DataError: an id is outside.
    """
    ids = np.asarray(tokens, np.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise DataError(
            f"token id {outside[0]} is not {what}: decode ids from 0 to {vocab_size - 1}."
        )
    return ids
