"""Documents cut into segments, and segments put together into batches.

A document with tokens t_1 .. t_n becomes inputs (b, t_1, .., t_{n-1}) and targets (t_1, .., t_n),
where b is the beginning of the document, cut into segments of N. So every token is a target
exactly once, whatever B and N; the last segment of a document is padded and masked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from block_recurrent.data.errors import DataError
from block_recurrent.data.tokenized import TokenizedCorpus


class Batch(NamedTuple):
    """One segment of every lane; B counts the lanes of this host.

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
      offset: how many of its tokens have been targets.
    """

    document: int
    offset: int = 0


class LaneReader:
    """Cuts the documents that lanes are reading into batches.

    Only the tokens of a batch are looked at, so a corpus may be a file mapped into memory.

    Args:
      corpus: the documents.
      batch_size: B, the number of lanes.
      segment_length: N, in tokens.
      vocab_size: V, the vocabulary of the model that will read the batches.

    Raises:
      DataError: there are no documents, a size is not positive, or the tokenizer's ids do not fit
        the vocabulary.
    """

    def __init__(
        self, corpus: TokenizedCorpus, batch_size: int, segment_length: int, vocab_size: int
    ):
        if not len(corpus):
            raise DataError(f"{corpus.origin} has no documents: lanes need at least one.")
        if batch_size < 1 or segment_length < 1:
            raise DataError(
                f"batch_size = {batch_size} and segment_length = {segment_length} must be at "
                "least 1."
            )
        if vocab_size < corpus.vocab_size:
            raise DataError(
                f"vocab_size = {vocab_size} is too small for tokenizer {corpus.tokenizer!r}: "
                f"set it to at least {corpus.vocab_size}."
            )
        self.corpus = corpus
        self.batch_size = batch_size
        self.segment_length = segment_length
        self.vocab_size = vocab_size
        self._verified: set[int] = set()

    def advance(self, lane: Lane | None) -> Lane | None:
        """Returns the lane one segment on, or None if its document has ended."""
        if lane is None:
            return None
        offset = lane.offset + self.segment_length
        return Lane(lane.document, offset) if offset < self.corpus.length(lane.document) else None

    def batch(self, lanes: Sequence[Lane | None]) -> Batch:
        """Returns the segment at which each of the B lanes stands; None is an idle lane.

        Raises:
          DataError: a document's tokens are damaged, or one is outside the vocabulary.
        """
        shape = (len(lanes), self.segment_length)
        inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, np.bool_)
        for row, lane in enumerate(lanes):
            if lane is not None:
                piece = self._stream(lane)
                inputs[row, : len(piece) - 1] = piece[:-1]
                targets[row, : len(piece) - 1] = piece[1:]
                mask[row, : len(piece) - 1] = True
        starts = np.array([lane is not None and lane.offset == 0 for lane in lanes])
        return Batch(inputs, targets, mask, starts)

    def _stream(self, lane: Lane) -> np.ndarray:
        """The token before the lane's next targets and these targets, [n + 1], n at most N."""
        if lane.document not in self._verified:
            self.corpus.verify(lane.document)
            self._verified.add(lane.document)
        begin, end = self.corpus.span(lane.document)
        begin += lane.offset
        end = min(end, begin + self.segment_length)
        if lane.offset:
            stream = self.corpus.tokens[begin - 1 : end]
        else:
            start = self.corpus.beginning_of_document
            stream = np.concatenate([[start], self.corpus.tokens[begin:end]])
        if stream.max() >= self.vocab_size:
            raise DataError(
                f"{self.corpus.origin}: document {self.corpus.ids[lane.document]!r} has token id "
                f"{stream.max()}, outside the vocabulary of {self.vocab_size}: its tokens are "
                "damaged; tokenize the corpus again."
            )
        return stream
