"""From text to token ids and back."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from block_recurrent.data.errors import DataError, unknown_name


class Tokenizer(Protocol):
    """What lanes, metrics and sampling need of a tokenizer."""

    @property
    def name(self) -> str:
        """Identifies the tokenizer: equal names give equal tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to `vocab_size - 1`."""
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
          UnicodeEncodeError: if the text has lone surrogates, which UTF-8 cannot encode.
        """
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the bytes [n]; invalid UTF-8, as in a cut character, is U+FFFD.

        Raises:
          DataError: if an id is not a byte.
        """
        ids = np.asarray(tokens, np.int64)
        outside = ids[(ids < 0) | (ids > 255)]
        if outside.size:
            raise DataError(f"token id {outside[0]} is not a byte: decode ids from 0 to 255.")
        return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")


TOKENIZERS = {"bytes": ByteTokenizer}


def make_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer called `name`: "bytes".

    Raises:
      DataError: if there is no tokenizer of this name.
    """
    if name not in TOKENIZERS:
        raise unknown_name("tokenizer", name, TOKENIZERS)
    return TOKENIZERS[name]()
