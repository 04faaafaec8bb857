"""Documents cut into segments, and segments put together into batches.

A document with tokens t_1 .. t_n becomes inputs (b, t_1, .., t_{n-1}) and targets (t_1, .., t_n),
where b is the beginning of the document, cut into segments of N. So every token is a target
exactly once, whatever B and N; the last segment of a document is padded and masked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from block_recurrent.data.corpus import Corpus
from block_recurrent.data.errors import DataError
from block_recurrent.data.tokenizers import Tokenizer


class Batch(NamedTuple):
    """One segment of every lane.

    Attributes:
      inputs: [B, N] int32, 0 where padded.
      targets: [B, N] int32, 0 where padded.
      mask: [B, N] bool, True where a target counts; its sum is the number of target tokens.
      start_of_document: [B] bool, True where the lane begins a document with this segment. False
        for a lane that has run out of documents; such a lane is masked as a whole.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    start_of_document: np.ndarray


class Lane(NamedTuple):
    """Where one batch row reads.

    Attributes:
      document: index of the document in its corpus.
      stream: [n + 1] int32, the beginning of the document and its n tokens.
      offset: how many of the n tokens have been targets.
    """

    document: int
    stream: np.ndarray
    offset: int = 0


class LaneReader:
    """Tokenizes documents when a lane opens them, and cuts the open ones into batches.

    Only the documents that lanes are reading are held as tokens.

    Args:
      corpus: the documents.
      tokenizer: turns them into tokens.
      batch_size: B, the number of lanes.
      segment_length: N, in tokens.
      vocab_size: V, the vocabulary of the model that will read the batches.

    Raises:
      DataError: if there are no documents, a size is not positive, or the tokenizer's ids do not
        fit the vocabulary.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        batch_size: int,
        segment_length: int,
        vocab_size: int,
    ):
        if not corpus.documents:
            raise DataError(f"{corpus.origin} has no documents: lanes need at least one.")
        if batch_size < 1 or segment_length < 1:
            raise DataError(
                f"batch_size = {batch_size} and segment_length = {segment_length} must be at "
                "least 1."
            )
        if vocab_size < tokenizer.vocab_size:
            raise DataError(
                f"vocab_size = {vocab_size} is too small for tokenizer {tokenizer.name!r}: "
                f"set it to at least {tokenizer.vocab_size}."
            )
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.segment_length = segment_length
        self.vocab_size = vocab_size

    def open(self, document: int, offset: int = 0) -> Lane:
        """Returns a lane at token `offset` of a document, given by its index.

        Raises:
          DataError: if the document has no tokens, or one outside the vocabulary.
        """
        tokens = np.asarray(self.tokenizer.encode(self.corpus.documents[document].text))
        self._check(tokens, document)
        stream = np.empty(len(tokens) + 1, np.int32)
        stream[0] = self.tokenizer.beginning_of_document
        stream[1:] = tokens
        return Lane(document, stream, offset)

    def _check(self, tokens: np.ndarray, document: int) -> None:
        where = f"{self.corpus.origin}: document {self.corpus.documents[document].id!r}"
        if not len(tokens):
            raise DataError(f"{where} has no tokens: leave empty documents out of the corpus.")
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if outside.size:
            raise DataError(
                f"{where} has token id {outside[0]}, outside the vocabulary of {self.vocab_size}: "
                "use a larger vocab_size or another tokenizer."
            )

    def advance(self, lane: Lane | None) -> Lane | None:
        """Returns the lane one segment on, or None if its document has ended."""
        if lane is None or lane.offset + self.segment_length >= len(lane.stream) - 1:
            return None
        return lane._replace(offset=lane.offset + self.segment_length)

    def batch(self, lanes: Sequence[Lane | None]) -> Batch:
        """Returns the segment at which each of the B lanes stands; None is an idle lane."""
        shape = (self.batch_size, self.segment_length)
        inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, np.bool_)
        for row, lane in enumerate(lanes):
            if lane is not None:
                piece = lane.stream[lane.offset : lane.offset + self.segment_length + 1]
                inputs[row, : len(piece) - 1] = piece[:-1]
                targets[row, : len(piece) - 1] = piece[1:]
                mask[row, : len(piece) - 1] = True
        starts = np.array([lane is not None and lane.offset == 0 for lane in lanes])
        return Batch(inputs, targets, mask, starts)
