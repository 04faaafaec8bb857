"""Words and kinds of tokens: a run's gain may lie on names, or on line breaks.

A word is a maximal run of letters, digits and underscores in a document's text, whatever the
tokenizer; a token counts to the first word that it has a part of, and a word's loss is the sum of
its tokens' losses. The distance of a word to its previous occurrence is counted in tokens, from
first token to first token.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from block_recurrent.data import TokenizedCorpus, Tokenizer
from block_recurrent.lab.analysis.token_losses import Reach

FIRST = -1  # the distance of a word that has not occurred before
KINDS = ("line breaks", "other white space", "letters and digits", "other")
CLASSES = ("within the window", "beyond the window", "beyond all windows", "first occurrence")


class Words(NamedTuple):
    """The words of a document, n of them, in order.

    Attributes:
      text: the words.
      position: index of each word's first token in its document, [n].
      distance: tokens back to the previous occurrence, or FIRST, [n].
      word_of_token: the word each token counts to, -1 for none, [tokens].
    """

    text: list[str]
    position: np.ndarray
    distance: np.ndarray
    word_of_token: np.ndarray

    def sums(self, losses: np.ndarray) -> np.ndarray:
        """The words' losses [n], from those of the tokens."""
        inside = self.word_of_token >= 0
        return np.bincount(self.word_of_token[inside], losses[inside], len(self.text))


def words_of(spellings: Sequence[bytes]) -> Words:
    """The words of a document, from the bytes of each token."""
    # Bytes that are not UTF-8, such as a character cut in two, become a character each.
    text = b"".join(spellings).decode("utf-8", "surrogateescape")
    sizes = [len(character.encode("utf-8", "surrogateescape")) for character in text]
    byte_of = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    found = list(re.finditer(r"\w+", text))
    begins, ends = byte_of[np.array([match.span() for match in found], int).reshape(-1, 2)].T
    token_ends = np.cumsum([len(spelling) for spelling in spellings], dtype=np.int64)
    token_begins = np.concatenate([[0], token_ends])[:-1]
    # The first word that ends after the token begins; the token has a part of it, or of none.
    word = np.searchsorted(ends, token_begins, side="right")
    inside = np.append(begins, len(text) * 4)[word] < token_ends
    word_of_token = np.where(inside & (token_begins < token_ends), word, -1)
    # Words whose every byte belongs to a token that counts to the word before are left out.
    kept, position = np.unique(word_of_token[word_of_token >= 0], return_index=True)
    position = np.flatnonzero(word_of_token >= 0)[position]
    renumbered = np.full(len(found) + 1, -1)
    renumbered[kept] = np.arange(len(kept))
    words = [found[number].group() for number in kept]
    return Words(words, position, distances(words, position), renumbered[word_of_token])


def distances(words: Sequence[str], position: np.ndarray) -> np.ndarray:
    """How far back each word last began, FIRST where it has not occurred, [n]."""
    last: dict[str, int] = {}
    found = np.full(len(words), FIRST)
    for index, (word, begin) in enumerate(zip(words, position.tolist(), strict=True)):
        if word in last:
            found[index] = begin - last[word]
        last[word] = begin
    return found


def words_of_corpus(corpus: TokenizedCorpus, tokenizer: Tokenizer) -> list[Words]:
    """The words of every document."""
    spellings = tokenizer.spellings()
    found = []
    for document in range(len(corpus)):
        begin, end = corpus.span(document)
        found.append(words_of([spellings[token] for token in corpus.tokens[begin:end].tolist()]))
    return found


def classes(distance: np.ndarray, reach: Reach) -> np.ndarray:
    """The index in CLASSES of each distance, [n]."""
    return np.select(
        [distance == FIRST, distance <= reach.window, distance <= reach.reach], [3, 0, 1], 2
    )


def distance_edges(longest: int) -> np.ndarray:
    """1, 2, 4, ... up to the first power of two above `longest`."""
    return 2 ** np.arange(max(int(longest), 1).bit_length() + 1)


class Gain(NamedTuple):
    """A word that the run predicts better than the reference.

    Attributes:
      word: the word.
      position: of its first token.
      distance: to its previous occurrence, or FIRST.
      bits: the reference's loss minus the run's.
      document: its document's index.
    """

    word: str
    position: int
    distance: int
    bits: float
    document: int

    @property
    def capital(self) -> bool:
        """Whether it begins with a capital letter."""
        return self.word[0].isupper()

    @property
    def identifier(self) -> bool:
        """Whether it has an underscore, a digit, or a capital letter after a small one."""
        return bool(re.search(r"[_\d]|[a-z][A-Z]", self.word))


def largest_gains(words: Sequence[Words], gains: Sequence[np.ndarray]) -> list[Gain]:
    """The words of all documents, the largest gain first.

    Args:
      words: of each document, n.
      gains: bits of each document's words, [n].
    """
    found = [
        Gain(*word, document=document)
        for document, (own, bits) in enumerate(zip(words, gains, strict=True))
        for word in zip(
            own.text, own.position.tolist(), own.distance.tolist(), bits.tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda gain: -gain.bits)


def kind_of(spelling: bytes) -> int:
    """The index in KINDS of a token with this spelling.

    A line break anywhere in it counts first, then letters and digits; bytes beyond ASCII are
    letters.
    """
    if b"\n" in spelling or b"\r" in spelling:
        return 0
    if spelling.isspace():
        return 1
    return 2 if any(byte > 127 or chr(byte).isalnum() for byte in spelling) else 3


def kinds_of_corpus(corpus: TokenizedCorpus, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The kind of every token, of each document [n]."""
    kinds = np.array([kind_of(spelling) for spelling in tokenizer.spellings()])
    spans = (corpus.span(document) for document in range(len(corpus)))
    return [kinds[np.asarray(corpus.tokens[begin:end])] for begin, end in spans]
