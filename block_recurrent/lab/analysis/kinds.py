"""What kind of text tokens stand for: one model gains on line breaks, another on words."""

from collections.abc import Sequence

import numpy as np

from block_recurrent.data import TokenizedCorpus, Tokenizer

KINDS = ("line breaks", "other white space", "letters and digits", "other")


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
    spans: Sequence[tuple[int, int]] = [corpus.span(document) for document in range(len(corpus))]
    return [kinds[np.asarray(corpus.tokens[begin:end])] for begin, end in spans]
