"""The documents that are analysed: some of a split, or a text of one's own."""

import dataclasses

import numpy as np

from block_recurrent.data import (
    Corpus,
    DataError,
    Document,
    TokenizedCorpus,
    Tokenizer,
    byte_count,
    tokenize,
    word_count,
)
from block_recurrent.data.tokenized import Fingerprint, count_unknown


def one_document(name: str, text: str, tokenizer: Tokenizer) -> TokenizedCorpus:
    """A corpus of a single text.

    Raises:
      DataError: there is no text.
    """
    if not text:
        raise DataError(f"{name} is empty: give a file with some text")
    return tokenize(Corpus((Document(name, "", text),), name), tokenizer)


def take_documents(
    corpus: TokenizedCorpus, tokenizer: Tokenizer, count: int, length: int
) -> TokenizedCorpus:
    """At most `count` documents, evenly spread over the corpus, of each the first `length` tokens.

    Args:
      corpus: the documents.
      tokenizer: that made their tokens.
      count: at least 1.
      length: at least 1.

    Raises:
      DataError: there are no documents, or the tokens of one are damaged.
    """
    if not len(corpus):
        raise DataError(f"{corpus.origin} has no documents: there is nothing to analyse")
    chosen = np.unique(np.linspace(0, len(corpus) - 1, min(count, len(corpus))).round().astype(int))
    fingerprint, pieces, documents = Fingerprint(tokenizer.name), [], []
    for index in chosen.tolist():
        corpus.verify(index)
        begin, end = corpus.span(index)
        pieces.append(np.asarray(corpus.tokens[begin : min(end, begin + length)]))
        documents.append(Document(str(corpus.ids[index]), "", tokenizer.decode(pieces[-1])))
        fingerprint.add(documents[-1].id, pieces[-1])
    tokens = np.concatenate(pieces)
    return dataclasses.replace(
        corpus,
        ids=tuple(document.id for document in documents),
        tokens=tokens,
        ends=np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
        byte_counts=np.array(list(map(byte_count, documents)), np.int64),
        word_counts=np.array(list(map(word_count, documents)), np.int64),
        unknown=count_unknown(tokens, tokenizer),
        fingerprint=fingerprint.hexdigest(),
        notes="",
        checksums=None,
    )


def lanes_for(corpus: TokenizedCorpus, limit: int) -> int:
    """How many documents are read at once: all, at most `limit`."""
    return min(len(corpus), limit)
