"""Lanes: batch rows that read one document from its start to its end, then the next.

`TrainingLanes` goes on for ever, in random order; `evaluation_batches` reads each document once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from block_recurrent.data.errors import DataError
from block_recurrent.data.segments import Batch, Lane, LaneReader
from block_recurrent.data.tokenized import TokenizedCorpus


def epoch_order(num_documents: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the random order of the documents in an epoch, a permutation [num_documents].

    It sorts raw words of PCG64 because NumPy promises only these to be the same in every version.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_documents)
    return np.argsort(words, kind="stable")


class TrainingLanes:
    """An endless iterator of batches over the documents of a corpus in random order.

    Every epoch is a new permutation of the documents, a function of `seed` and the number of the
    epoch alone. A lane whose document has ended takes the next one of the order; epochs follow
    one another without a gap, so no lane is ever idle. Every process follows all lanes, which costs
    nothing, and reads the tokens of its own: what a lane reads does not depend on their number.

    Args:
      corpus: the documents.
      batch_size: B, the number of lanes of all hosts.
      segment_length: N, in tokens.
      vocab_size: V, the vocabulary of the model.
      seed: seed of the order, at least 0.
      rows: the lanes whose batches are wanted; all unless given.

    Raises:
      DataError: the arguments do not fit together. Iterating also raises it, when a lane reaches
        a token outside the vocabulary or a damaged document.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        batch_size: int,
        segment_length: int,
        vocab_size: int,
        *,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ):
        if seed < 0:
            raise DataError(f"seed = {seed} must be at least 0.")
        self._reader = LaneReader(corpus, batch_size, segment_length, vocab_size)
        self._seed = seed
        self._rows = range(batch_size) if rows is None else rows
        self._identity = {
            "seed": seed,
            "documents": len(corpus),
            "corpus": corpus.fingerprint,
            "tokenizer": corpus.tokenizer,
        }
        self._lanes: list[Lane | None] = [None] * batch_size
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self._order = epoch_order(len(self._reader.corpus), self._seed, epoch)
        self._epoch, self._cursor = epoch, 0

    def _next_document(self) -> int:
        if self._cursor == len(self._order):
            self._start_epoch(self._epoch + 1)
        self._cursor += 1
        return int(self._order[self._cursor - 1])

    def __iter__(self) -> "TrainingLanes":
        return self

    def __next__(self) -> Batch:
        """Returns the next segment of every lane among `rows`."""
        lanes = [lane or Lane(self._next_document()) for lane in self._lanes]
        self._lanes = [self._reader.advance(lane) for lane in lanes]
        return self._reader.batch([lanes[row] for row in self._rows])

    @property
    def position(self) -> dict[str, Any]:
        """Where the iterator stands after the batches taken so far, as a small JSON object.

        "epoch" and "cursor" say how many documents of which epoch have been opened; "lanes" has
        the pair (document index, offset in tokens) of every lane, or None where the next batch
        opens a document. The rest identifies what `restore` must find unchanged.
        """
        lanes = [lane and list(lane) for lane in self._lanes]
        return self._identity | {"epoch": self._epoch, "cursor": self._cursor, "lanes": lanes}

    def restore(self, position: dict[str, Any]) -> None:
        """Continues at a `position`, with exactly the batches that followed it.

        With another segment length the lanes go on at the same tokens, cut differently.

        Raises:
          DataError: the position belongs to another seed, corpus, tokenizer or number of lanes.
        """
        expected = self._identity | {"batch_size": self._reader.batch_size}
        saved = position | {"batch_size": len(position["lanes"])}
        for name, value in expected.items():
            if saved.get(name) != value:
                raise DataError(
                    f"the position was saved with {name} = {saved.get(name)!r}, here it is "
                    f"{value!r}: restore it with the same settings, or start from the beginning."
                )
        self._lanes = [lane and Lane(*lane) for lane in position["lanes"]]
        self._start_epoch(position["epoch"])
        self._cursor = position["cursor"]


def evaluation_batches(
    corpus: TokenizedCorpus,
    batch_size: int,
    segment_length: int,
    vocab_size: int,
    *,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Returns batches that hold each document once, until all lanes of all hosts are empty.

    Documents are taken longest first, equal ones in the order of the corpus, so that lanes end
    at about the same time. A mean over the targets, weighted by the mask, depends on neither the
    batch size nor the segment length.

    Args:
      corpus: the documents.
      batch_size: B, the number of lanes of all hosts.
      segment_length: N, in tokens.
      vocab_size: V, the vocabulary of the model.
      rows: the lanes whose batches are wanted; all unless given.

    Raises:
      DataError: the arguments do not fit together. Iterating also raises it, when a lane reaches
        a token outside the vocabulary or a damaged document.
    """
    reader = LaneReader(corpus, batch_size, segment_length, vocab_size)
    rows = range(batch_size) if rows is None else rows
    return (reader.batch([lanes[row] for row in rows]) for lanes in evaluation_lanes(reader))


def evaluation_lanes(reader: LaneReader) -> Iterator[list[Lane | None]]:
    """Where the lanes of a reader stand, batch after batch, in `evaluation_batches`."""
    corpus = reader.corpus
    opened = map(Lane, sorted(range(len(corpus)), key=lambda index: -corpus.length(index)))
    lanes: list[Lane | None] = [None] * reader.batch_size
    while any(lanes := [lane or next(opened, None) for lane in lanes]):
        yield lanes
        lanes = [reader.advance(lane) for lane in lanes]
