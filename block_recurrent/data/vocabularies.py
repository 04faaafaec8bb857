"""Tokenizers whose vocabulary is a file, and the choice of a configuration's tokenizer.

Nothing is downloaded.
"""

import base64
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.config import DataConfig
from block_recurrent.data.documents import DataError
from block_recurrent.data.tokenizers import ByteTokenizer, Tokenizer, check_ids
from block_recurrent.system.digests import digest
from block_recurrent.system.extras import require

# Vocabulary files by the value of data.tokenizer: what they are called and how they begin.
_KINDS = {
    "sentencepiece": ("a SentencePiece vocabulary", rb"\n[^{]\n"),
    "huggingface": ("a tokenizer.json", rb"\s*\{"),
    "tiktoken": ("a tiktoken vocabulary", rb"[A-Za-z0-9+/]+=* \d{1,8}\s+"),
}
# SentencePiece writes a space as this character, so the character itself needs another way.
_SPACE_MARK = "\u2581"
_STAND_IN = "\ue000"  # for private use: in no vocabulary, so it becomes bytes

# A million characters of white space in a row overflow tiktoken's stack, so they are cut before.
_LONGEST_SPACE = 500_000

_CONTRACTION, _SPACES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\s+(?!\S)|\s+"
_BEFORE, _NEWLINES = r"[^\r\n\p{L}\p{N}]?", r"\s*[\r\n]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# How known encodings cut a text before they merge bytes. A tiktoken file does not say it.
PATTERNS = {
    "gpt2": rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}++| ?\p{{N}}++| ?[^\s\p{{L}}\p{{N}}]++|{_SPACES}",
    "cl100k_base": rf"{_CONTRACTION}|{_BEFORE}+\p{{L}}++|\p{{N}}{{1,3}}+"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$|{_NEWLINES}|{_SPACES}",
    "o200k_base": rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_NEWLINES}|{_SPACES}",
}


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
        model = _read(path, sha256)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
            self.vocab_size: int = self._processor.vocab_size()
            self._pieces = [self._processor.id_to_piece(each) for each in range(self.vocab_size)]
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter also in its own message
            raise _unusable(path, model, "sentencepiece") from error
        self.name = f"sentencepiece:{digest(model)}"
        marks = (self._processor.bos_id(), self._processor.pad_id(), self._processor.unk_id())
        starts = [mark for mark in marks if mark >= 0]
        if not starts:
            reason = "it has neither <s> nor <pad> nor <unk>"
            raise _unusable(path, model, "sentencepiece", reason)
        self.beginning_of_document = starts[0]
        self._bytes = {
            int(written[1:-1], 16): piece
            for piece, written in enumerate(self._pieces)
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
        return self._processor.decode(check_ids(tokens, self.vocab_size, "a piece").tolist())

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
        return self._pieces[piece].replace(_SPACE_MARK, " ").encode()


class HuggingFaceTokenizer:
    """Tokens of a `tokenizer.json`, the file of Hugging Face's package `tokenizers`.

    Special tokens are not looked for in a text, so one that looks like them is text. What the file
    adds around a text is left out, as are its truncation and padding. If the tokens are byte-level,
    and the file neither normalizes text nor puts a space before it, `decode(encode(text)) == text`.
    Others may lose text, Unigram vocabularies also text that looks like a special token.

    A document begins with the special token that the file puts before a text. Without one it begins
    with the first special token, or else with an id of its own after the vocabulary.

    Args:
      path: the file.
      sha256: hexadecimal SHA-256 that the file must have; None takes any.

    Raises:
      DataError: the file cannot be read, is no tokenizer.json, or has another digest.
      MissingPackage: tokenizers is not installed.
    """

    def __init__(self, path: str | Path, sha256: str | None = None):
        tokenizers = require("tokenizers", "data")
        content = _read(path, sha256)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except ValueError as error:
            raise _unusable(path, content, "huggingface", str(error)) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.name = f"huggingface:{digest(content)}"
        self._path = path
        self._added = self._tokenizer.get_added_tokens_decoder()
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        kinds = [each["type"] for each in (decoder, *decoder.get("decoders", ())) if each]
        self._byte_level, self._byte_fallback = kinds == ["ByteLevel"], "ByteFallback" in kinds
        vocabulary = self._tokenizer.get_vocab()
        for written, token in vocabulary.items() if self._byte_level else ():
            if token not in self._added and not _byte_level_alphabet().keys() >= set(written):
                reason = f"it is byte-level, and its token {written!r} is not"
                raise _unusable(path, content, "huggingface", reason)
        size = max(vocabulary.values(), default=-1) + 1
        self.beginning_of_document = self._beginning(size)
        self.vocab_size: int = max(size, self.beginning_of_document + 1)

    def _beginning(self, size: int) -> int:
        around = self._encode("a", add_special_tokens=True)
        if around.special_tokens_mask[:1] == [1]:
            return around.ids[0]
        return min((token for token, added in self._added.items() if added.special), default=size)

    def _encode(self, text: str, *, add_special_tokens: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise DataError(f"{self._path} cannot encode a text: {error}.") from error

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of `text`, [n] int32.

        Raises:
          DataError: the file has no token for what its vocabulary does not know.
        """
        return np.asarray(self._encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the tokens [n]; special tokens have none.

        Raises:
          DataError: an id is outside the vocabulary.
        """
        ids = check_ids(tokens, self.vocab_size, "a token").tolist()
        return _joined(self._spellings, ids) if self._byte_level else self._tokenizer.decode(ids)

    def spellings(self) -> list[bytes]:
        """Returns the bytes of each token inside a text; no bytes for special tokens."""
        return self._spellings

    @functools.cached_property
    def _spellings(self) -> list[bytes]:
        return [self._spelling(token) for token in range(self.vocab_size)]

    def _spelling(self, token: int) -> bytes:
        if (added := self._added.get(token)) is not None:
            return b"" if added.special else added.content.encode()
        written = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            return bytes(map(_byte_level_alphabet().__getitem__, written))
        if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", written):
            return bytes.fromhex(written[3:5])
        once, twice = (self._tokenizer.decode([token] * count) for count in (1, 2))
        return twice[len(once) :].encode()  # the first may lack its space


class TiktokenTokenizer:
    """Byte-level tokens of a `tiktoken` file, whose lines are a token in base64 and its rank.

    There are no special tokens: `<|endoftext|>` is text. If the pattern matches every part of every
    text, as those of known encodings do, `decode(encode(text)) == text`. A document begins with an
    id of its own, the one after the last rank. In GPT-2's vocabulary it is that of <|endoftext|>.

    Args:
      path: the file.
      pattern: how text is cut before bytes are merged: one of `PATTERNS`, "gpt2", "cl100k_base" or
        "o200k_base", or a regular expression as tiktoken reads it.
      sha256: hexadecimal SHA-256 that the file must have; None takes any.

    Raises:
      DataError: the file cannot be read, is no such file, or has another digest; or the pattern
        is wrong.
      MissingPackage: tiktoken is not installed.
    """

    def __init__(self, path: str | Path, pattern: str, sha256: str | None = None):
        tiktoken = require("tiktoken", "data")
        content = _read(path, sha256)
        ranks = _ranks(path, content)
        regex = PATTERNS.get(pattern, pattern)
        if re.fullmatch(r"[\w.-]*", regex):
            raise DataError(
                f"vocab_pattern {pattern!r} is none of {', '.join(PATTERNS)}: choose one of them, "
                "or give the regular expression that the vocabulary was trained with."
            )
        try:
            self._encoding = tiktoken.Encoding(
                str(path), pat_str=regex, mergeable_ranks=ranks, special_tokens={}
            )
        except ValueError as error:
            raise DataError(
                f"vocab_pattern {pattern!r} is no regular expression: {error}."
            ) from error
        self.name = f"tiktoken:{digest(content)}:{pattern}"
        self.beginning_of_document = max(ranks.values()) + 1
        self.vocab_size = self.beginning_of_document + 1
        self._spellings = [b""] * self.vocab_size
        for token, rank in ranks.items():
            self._spellings[rank] = token

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of `text`, [n] int32."""
        parts = re.split(rf"(\s{{{_LONGEST_SPACE}}})", text)
        tokens = [self._encoding.encode_ordinary(part) for part in parts]
        return np.concatenate([np.asarray(part, np.int32) for part in tokens])

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the tokens [n]; invalid UTF-8, as in a cut character, is U+FFFD.

        Raises:
          DataError: an id is outside the vocabulary.
        """
        return _joined(self._spellings, check_ids(tokens, self.vocab_size, "a token").tolist())

    def spellings(self) -> list[bytes]:
        """Returns the bytes of each token; no bytes for the beginning of a document."""
        return self._spellings


def _read(path: str | Path, sha256: str | None) -> bytes:
    """Returns the content of a vocabulary file, which must have the digest if one is given."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"vocabulary {path} cannot be read: {error.strerror}.") from error
    found = digest(content)
    if sha256 is not None and found != sha256:
        raise DataError(
            f"vocabulary {path} has SHA-256 {found}, the configuration asks for {sha256}: "
            "give the file that is meant, or set data.vocab_sha256 for a new run."
        )
    return content


def _unusable(path: str | Path, content: bytes, kind: str, reason: str = "") -> DataError:
    """Returns the error for a file that is not of a kind; it names the kind that it looks like."""
    what = f"{path} is not {_KINDS[kind][0]}" + (f" ({reason})" if reason else "")
    for other, (called, beginning) in _KINDS.items():
        if other != kind and re.match(beginning, content, re.DOTALL):
            return DataError(f"{what}, but looks like {called}: set data.tokenizer to {other!r}.")
    return DataError(f"{what}.")


def _ranks(path: str | Path, content: bytes) -> dict[bytes, int]:
    """Returns the ids of the tokens in a tiktoken file by their bytes."""
    if not re.fullmatch(b"(?:%b)*" % _KINDS["tiktoken"][1], content + b"\n"):
        raise _unusable(path, content, "tiktoken")
    words = content.split()
    try:
        tokens = [base64.b64decode(word) for word in words[::2]]
    except ValueError as error:
        raise _unusable(path, content, "tiktoken", str(error)) from error
    ranks = dict(zip(tokens, map(int, words[1::2]), strict=True))
    if len(set(ranks.values())) < len(tokens):
        raise _unusable(path, content, "tiktoken", "a token or a rank occurs twice")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _unusable(path, content, "tiktoken", f"there is no token for the byte {missing[0]}")
    return ranks


@functools.cache
def _byte_level_alphabet() -> dict[str, int]:
    """Returns the bytes by the characters that byte-level vocabularies write them as.

    A byte whose Latin-1 character is printable is written as that character, the others as the
    characters from U+0100 on (Radford et al. 2019).
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


def _joined(spellings: Sequence[bytes], ids: Sequence[int]) -> str:
    return b"".join([spellings[token] for token in ids]).decode("utf-8", "replace")


def make_tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer that a configuration names.

    Raises:
      DataError: its vocabulary cannot be used.
      MissingPackage: it needs a package that is not installed.
    """
    path, sha256 = config.vocab_path, config.vocab_sha256
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    assert path is not None
    if config.tokenizer == "tiktoken":
        assert config.vocab_pattern is not None
        return TiktokenTokenizer(path, config.vocab_pattern, sha256)
    kind = {"sentencepiece": SentencePieceTokenizer, "huggingface": HuggingFaceTokenizer}
    return kind[config.tokenizer](path, sha256)
