"""Tokenizers turn text into token ids, and token ids into text.

`Tokenizer` is what a tokenizer has to offer. `ByteTokenizer` and `SentencePieceTokenizer` do, and
`make_tokenizer` chooses between them.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from block_recurrent.config import DataConfig
from block_recurrent.data.documents import DataError
from block_recurrent.system.extras import require

# SentencePiece writes a space as this character, so the character itself needs another way.
_SPACE_MARK = "\u2581"
_STAND_IN = "\ue000"  # for private use: in no vocabulary, so it becomes bytes


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
        return _inside(tokens, 256, "a byte").astype(np.uint8).tobytes().decode("utf-8", "replace")

    def spellings(self) -> list[bytes]:
        """Returns every byte."""
        return [bytes([byte]) for byte in range(256)]


class SentencePieceTokenizer:
    """Pieces of a SentencePiece vocabulary (Kudo and Richardson 2018, arXiv 1808.06226).

    A vocabulary of `block-recurrent train-vocab` keeps white space and falls back to bytes, so
    `decode(encode(text)) == text`. Other vocabularies may lose text: T5's has no braces, backslash
    or newline. A document begins with the vocabulary's <s>, or with <pad> if it has no <s>.

    Args:
      path: model file.
      sha256: hexadecimal SHA-256 that the file must have; None takes any.

    Raises:
      DataError: the file cannot be read, is no vocabulary, or has another digest.
      MissingPackage: sentencepiece is not installed.
    """

    def __init__(self, path: str | Path, sha256: str | None = None):
        sentencepiece = require("sentencepiece", "data")
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"vocabulary {path} cannot be read: {error.strerror}.") from error
        digest = hashlib.sha256(model).hexdigest()
        if sha256 is not None and digest != sha256:
            raise DataError(
                f"vocabulary {path} has SHA-256 {digest}, the configuration asks for {sha256}: "
                "give the file that is meant, or set data.vocab_sha256 for a new run."
            )
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise DataError(f"{path} is not a SentencePiece vocabulary.") from error
        self.name = f"sentencepiece:{digest}"
        self.vocab_size: int = self._processor.vocab_size()
        starts = (self._processor.bos_id(), self._processor.pad_id(), self._processor.unk_id())
        self.beginning_of_document = next(token for token in starts if token >= 0)
        pieces = range(self.vocab_size)
        self._bytes = {
            int(self._processor.id_to_piece(piece)[1:-1], 16): piece
            for piece in pieces
            if self._processor.is_byte(piece)
        }

    def encode(self, text: str) -> np.ndarray:
        """Returns the pieces of `text`, [n] int32."""
        if not self._bytes or _SPACE_MARK not in text:
            return np.asarray(self._processor.encode(text), np.int32)
        mark = [self._bytes[byte] for byte in _SPACE_MARK.encode()]
        parts = re.split(f"({_SPACE_MARK})", text)
        pieces = [self._processor.encode(parts[0])]
        pieces += [mark if part == _SPACE_MARK else self._goes_on(part) for part in parts[1:]]
        return np.concatenate([np.asarray(part, np.int32) for part in pieces])

    def _goes_on(self, text: str) -> list[int]:
        """Returns the pieces of text inside a text, without the space put before a text."""
        stand_in = [self._bytes[byte] for byte in _STAND_IN.encode()]
        pieces = self._processor.encode(_STAND_IN + text)
        return pieces[pieces.index(stand_in[0]) + len(stand_in) :]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the pieces [n].

        Raises:
          DataError: an id is outside the vocabulary.
        """
        return self._processor.decode(_inside(tokens, self.vocab_size, "a piece").tolist())

    def spellings(self) -> list[bytes]:
        """Returns the bytes of each piece; no bytes for marks such as <s>, U+FFFD for <unk>.

        Joined over the pieces of a text they give the text, except for a space that the vocabulary
        may put before it and for text that the vocabulary loses.
        """
        bytes_of = {piece: bytes([byte]) for byte, piece in self._bytes.items()}
        return [bytes_of.get(piece, self._spelling(piece)) for piece in range(self.vocab_size)]

    def _spelling(self, piece: int) -> bytes:
        if self._processor.is_unknown(piece):
            return "\N{REPLACEMENT CHARACTER}".encode()
        if self._processor.is_control(piece):
            return b""
        return self._processor.id_to_piece(piece).replace(_SPACE_MARK, " ").encode()


def _inside(tokens: Sequence[int] | np.ndarray, vocab_size: int, what: str) -> np.ndarray:
    ids = np.asarray(tokens, np.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise DataError(
            f"token id {outside[0]} is not {what}: decode ids from 0 to {vocab_size - 1}."
        )
    return ids


def make_tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer that a configuration names.

    Raises:
      DataError: its vocabulary cannot be used.
      MissingPackage: it needs sentencepiece.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    assert config.vocab_path is not None
    return SentencePieceTokenizer(config.vocab_path, config.vocab_sha256)
