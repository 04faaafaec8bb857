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
    lengths = np.array([len(spelling) for spelling in spellings], np.int64)
    # Bytes that are not UTF-8, such as a character cut in two, become a character each.
    text = b"".join(spellings).decode("utf-8", "surrogateescape")
    sizes = [len(character.encode("utf-8", "surrogateescape")) for character in text]
    begin_of = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    word_of_byte = np.full(int(lengths.sum()), -1)
    found = []
    for number, match in enumerate(re.finditer(r"\w+", text)):
        word_of_byte[begin_of[match.start()] : begin_of[match.end()]] = number
        found.append(match.group())
    word_of_token = _first_word(word_of_byte, lengths)
    # Words whose every byte belongs to a token that counts to the word before are left out.
    kept, position = np.unique(word_of_token, return_index=True)
    if len(kept) and kept[0] < 0:
        kept, position = kept[1:], position[1:]
    renumbered = np.full(len(found) + 1, -1)
    renumbered[kept] = np.arange(len(kept))
    text_of = [found[number] for number in kept]
    return Words(text_of, position, distances(text_of, position), renumbered[word_of_token])


def _first_word(word_of_byte: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The first word that each token has a byte of, or -1; tokens have these lengths in bytes."""
    token_of_byte = np.repeat(np.arange(len(lengths)), lengths)
    inside = word_of_byte >= 0
    tokens, first = np.unique(token_of_byte[inside], return_index=True)
    words = np.full(len(lengths), -1)
    words[tokens] = word_of_byte[inside][first]
    return words


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


class Grouped(NamedTuple):
    """Sums over words of each document in groups, each [D, groups].

    Attributes:
      counts: words.
      own: nats of the run.
      reference: nats of the reference.
    """

    counts: np.ndarray
    own: np.ndarray
    reference: np.ndarray


def group_words(
    groups: Sequence[np.ndarray],
    own: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    number: int,
) -> Grouped:
    """Sums the words' losses by group.

    Args:
      groups: of each document's words, [n] integers below `number`; negative ones are left out.
      own: nats of these words in the run.
      reference: nats of these words in the reference.
      number: of groups.
    """
    rows = []
    for group, one, other in zip(groups, own, reference, strict=True):
        inside = group >= 0
        weights = (None, one[inside], other[inside])
        rows.append([np.bincount(group[inside], weight, number) for weight in weights])
    return Grouped(*np.moveaxis(np.array(rows, np.float64), 1, 0))


class Gain(NamedTuple):
    """A word that the run predicts better than the reference.

    Attributes:
      word: the word.
      document: its document's index.
      position: of its first token.
      distance: to its previous occurrence, or FIRST.
      nats: the reference's loss less the run's.
    """

    word: str
    document: int
    position: int
    distance: int
    nats: float

    @property
    def capital(self) -> bool:
        """Whether it begins with a capital letter."""
        return self.word[0].isupper()

    @property
    def identifier(self) -> bool:
        """Whether it has an underscore, a digit, or a capital letter after a small one."""
        return bool(re.search(r"[_\d]|[a-z][A-Z]", self.word))


def largest_gains(
    words: Sequence[Words],
    own: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    count: int | None = 20,
) -> list[Gain]:
    """The `count` words of all documents that gain most, or all, the largest gain first."""
    gains = []
    for document, (found, one, other) in enumerate(zip(words, own, reference, strict=True)):
        difference = np.asarray(other, np.float64) - one
        for index in np.argsort(-difference, kind="stable")[:count].tolist():
            position, distance = int(found.position[index]), int(found.distance[index])
            nats = float(difference[index])
            gains.append(Gain(found.text[index], document, position, distance, nats))
    return sorted(gains, key=lambda gain: -gain.nats)[:count]


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
