"""A corpus as tokens: all documents in one array, in memory or mapped from a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from block_recurrent.data.corpus import Corpus
from block_recurrent.data.documents import DataError, Document, byte_count, word_count
from block_recurrent.data.tokenizers import Tokenizer
from block_recurrent.system.digests import digest_number


@dataclass(frozen=True)
class TokenizedCorpus:
    """The tokens of one split.

    Attributes:
      origin: the source, split and path of the documents, for messages.
      ids: the documents' ids, D of them.
      tokens: all tokens, document after document, [sum n] of an unsigned type.
      ends: where each document ends in `tokens`, [D] int64.
      byte_counts: UTF-8 bytes of each document, [D] int64.
      word_counts: whitespace-separated words of each document, [D] int64.
      tokenizer: name of the tokenizer.
      vocab_size: size of the tokenizer's vocabulary; token ids are below it.
      beginning_of_document: the id that is the input of a document's first target.
      lost: bytes of the documents that do not come back from the tokens, at least.
      fingerprint: 64 hexadecimal digits that follow from the ids, tokens and tokenizer.
      notes: lines for people about what was read, see `summary`.
      checksums: digests of each document's tokens, [D] int64; None for tokens in memory.
    """

    origin: str
    ids: Sequence[str]
    tokens: np.ndarray
    ends: np.ndarray
    byte_counts: np.ndarray
    word_counts: np.ndarray
    tokenizer: str
    vocab_size: int
    beginning_of_document: int
    lost: int
    fingerprint: str
    notes: str = ""
    checksums: np.ndarray | None = None

    def __len__(self) -> int:
        """D, the number of documents."""
        return len(self.ids)

    def span(self, document: int) -> tuple[int, int]:
        """Returns where a document, given by its index, begins and ends in `tokens`."""
        return int(self.ends[document - 1]) if document else 0, int(self.ends[document])

    def length(self, document: int) -> int:
        """Returns the number of tokens of a document, given by its index."""
        begin, end = self.span(document)
        return end - begin

    def verify(self, document: int) -> None:
        """Checks the tokens of a document, given by its index, against their checksum.

        Raises:
          DataError: they are not those that were written.
        """
        begin, end = self.span(document)
        tokens = self.tokens[begin:end]
        if self.checksums is not None and digest_number(tokens) != self.checksums[document]:
            raise DataError(
                f"{self.origin}: the tokens of document {self.ids[document]!r} are damaged. Delete "
                "the token cache; the next run makes a new one."
            )

    def summary(self) -> str:
        """Returns lines for people: counts, what was dropped, and a warning about lost text."""
        size = int(self.byte_counts.sum())
        same = self.tokenizer == "bytes" and len(self.tokens) == size
        unit = "" if same else f", {len(self.tokens):,} tokens"
        what = f"{len(self):,} documents, {size:,} bytes{unit}"
        lines = [f"{self.origin}: {what}", self.notes]
        if self.lost:
            share = self.lost / size
            lines.append(
                f"WARNING: the vocabulary loses {share:.2%} of the bytes of this text: they do not "
                "come back from its tokens. So bits per byte cannot be compared with those of "
                "other tokenizers: use bytes, or a vocabulary of `block-recurrent train-vocab`."
            )
        return "\n".join(filter(None, lines))


def token_type(vocab_size: int) -> np.dtype:
    """Returns the smallest little-endian unsigned type that holds ids below `vocab_size`."""
    return np.dtype(next(f"<u{n}" for n in (1, 2, 4) if vocab_size <= 256**n))


class Fingerprint:
    """The digest of a corpus, document by document."""

    def __init__(self, tokenizer: str):
        self._digest = hashlib.sha256(tokenizer.encode())

    def add(self, document_id: str, tokens: np.ndarray) -> None:
        """Adds the next document; equal ids give equal digests, whatever their dtype."""
        content = hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()
        self._digest.update(json.dumps([document_id, content]).encode())

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._digest.hexdigest()


def encode_document(document: Document, tokenizer: Tokenizer, origin: str) -> np.ndarray:
    """Returns the tokens of a document, [n], in the smallest type.

    Raises:
      DataError: there are no tokens, or one is outside the tokenizer's vocabulary.
    """
    tokens = np.asarray(tokenizer.encode(document.text))
    where = f"{origin}: document {document.id!r}"
    if not tokens.size:
        raise DataError(f"{where} has no tokens: leave empty documents out of the corpus.")
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        outside = tokens[(tokens < 0) | (tokens >= tokenizer.vocab_size)][0]
        raise DataError(
            f"{where} has token id {outside}, outside the vocabulary of {tokenizer.vocab_size}: "
            "the tokenizer is faulty."
        )
    return tokens.astype(token_type(tokenizer.vocab_size))


def lost_bytes(text: str, tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """Returns how many bytes of a text, at least, do not come back from its tokens [n].

    Bytes that come back in another place count as kept, but of a text that changes at least one
    byte is lost.
    """
    back = text if tokenizer.name == "bytes" else tokenizer.decode(tokens)
    if back == text:
        return 0
    before, after = (
        np.bincount(np.frombuffer(each.encode(), np.uint8), minlength=256) for each in (text, back)
    )
    return max(1, int(np.maximum(before - after, 0).sum()))


def end_tokens(tokenizer: Tokenizer, end_of_document: bool) -> np.ndarray:
    """Returns what is added to the tokens of a document: the id that begins one, or nothing."""
    end = [tokenizer.beginning_of_document] if end_of_document else []
    return np.array(end, token_type(tokenizer.vocab_size))


def tokenize(
    corpus: Corpus, tokenizer: Tokenizer, *, end_of_document: bool = False
) -> TokenizedCorpus:
    """Returns the tokens of a corpus, in memory.

    Args:
      corpus: the documents.
      tokenizer: turns them into tokens.
      end_of_document: whether each document ends with the token that begins documents.

    Raises:
      DataError: a document has no tokens, or one outside the tokenizer's vocabulary.
    """
    end = end_tokens(tokenizer, end_of_document)
    fingerprint, pieces, lost = Fingerprint(tokenizer.name), [], 0
    for document in corpus.documents:
        tokens = encode_document(document, tokenizer, corpus.origin)
        lost += lost_bytes(document.text, tokens, tokenizer)
        pieces.append(np.append(tokens, end))
        fingerprint.add(document.id, pieces[-1])
    empty = np.zeros(0, token_type(tokenizer.vocab_size))
    tokens = np.concatenate([empty, *pieces])
    return TokenizedCorpus(
        corpus.origin,
        tuple(document.id for document in corpus.documents),
        tokens,
        np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
        np.array([byte_count(document) for document in corpus.documents], np.int64),
        np.array([word_count(document) for document in corpus.documents], np.int64),
        tokenizer.name,
        tokenizer.vocab_size,
        tokenizer.beginning_of_document,
        lost,
        fingerprint.hexdigest(),
        corpus.account(),
    )
