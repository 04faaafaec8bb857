"""Lanes: batch rows that read one document from its start to its end, then the next.

A document with tokens t_1 .. t_n becomes inputs (b, t_1, .., t_{n-1}) and targets (t_1, .., t_n),
where b is the beginning of the document, cut into segments of N. So every token is a target
exactly once, whatever B and N. The last segment of a document is padded and masked.

`TrainingLanes` continues for ever, in random order; `evaluation_batches` reads each document once.
In training, a document that holds more than the B-th part of all tokens is cut into parts, because
otherwise several lanes would read it at nearly the same place at once. A lane reads a part from its
start to its end, with a state that is cleared at the start, and the token before it as first input.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from block_recurrent.data.documents import DataError
from block_recurrent.data.tokenized import TokenizedCorpus


class Batch(NamedTuple):
    """One segment of every lane; B counts the lanes of this host.

    Attributes:
      inputs: [B, N] int32, 0 where padded.
      targets: [B, N] int32, 0 where padded.
      mask: [B, N] bool, True where a target counts; its sum is the number of target tokens.
      start_of_document: [B] bool, True where the lane begins a document, or a part of one, with
        this segment; False for a lane without a document, all of whose targets are masked.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    start_of_document: np.ndarray


class Lane(NamedTuple):
    """The position of one batch row.

    Attributes:
      part: index of what it reads among the reader's parts: of a document, if none is cut.
      offset: how many tokens of the part have been targets.
    """

    part: int
    offset: int = 0


class Parts(NamedTuple):
    """What lanes read from its start to its end: whole documents, or parts of them, P in all.

    Attributes:
      documents: [P] int64, the index of the document, in the order of the corpus.
      begins: [P] int64, the first token of the part, counted from the start of the corpus.
      ends: [P] int64, the token after its last.
    """

    documents: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def whole_documents(corpus: TokenizedCorpus) -> Parts:
    """Returns every document as one part."""
    begins = np.concatenate([[0], corpus.ends[:-1]])
    return Parts(np.arange(len(corpus)), begins, np.asarray(corpus.ends))


def balanced_parts(corpus: TokenizedCorpus, batch_size: int) -> Parts:
    """Returns the documents, cut where one has more than its share of the B lanes.

    A document with n of the corpus' T tokens becomes ceil(n B / T) parts of nearly equal length,
    so none is cut that has at most T / B tokens, and a single document becomes B parts.
    """
    documents, begins, ends = whole_documents(corpus)
    lengths = ends - begins
    counts = np.minimum(-(-lengths * batch_size // len(corpus.tokens)), lengths)
    documents = np.repeat(documents, counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins, lengths, counts = begins[documents], lengths[documents], counts[documents]
    return Parts(
        documents, begins + number * lengths // counts, begins + (number + 1) * lengths // counts
    )


def describe_batches(corpus: TokenizedCorpus, batch_size: int, segment_length: int) -> str:
    """Returns lines for people: how full training batches are, and which documents are cut."""
    parts = balanced_parts(corpus, batch_size)
    segments = -(-(parts.ends - parts.begins) // segment_length)
    share = len(corpus.tokens) / (segments.sum() * segment_length)
    lines = [f"training batches: {share:.1%} of the places are targets, the rest is padding"]
    numbers = np.bincount(parts.documents)
    if cut := numbers[numbers > 1].tolist():
        lines.append(
            f"documents with more than 1/{batch_size} of the tokens: {len(cut):,}, read in "
            f"{sum(cut):,} parts so that all {batch_size} rows read different text"
        )
    return "\n".join(lines)


class LaneReader:
    """Cuts what lanes are reading into batches.

    Only the tokens of a batch are looked at, so a corpus may be a file mapped into memory.

    Args:
      corpus: the documents.
      batch_size: B, the number of lanes.
      segment_length: N, in tokens.
      vocab_size: V, the vocabulary of the model that will read the batches.
      balanced: whether documents are cut as `balanced_parts` does, or are read whole.

    Raises:
      DataError: there are no documents, a size is not positive, or the tokenizer's ids do not fit
        the vocabulary.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        batch_size: int,
        segment_length: int,
        vocab_size: int,
        *,
        balanced: bool = False,
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
                f"set model.vocab_size = {corpus.vocab_size} or more."
            )
        self.corpus = corpus
        self.parts = balanced_parts(corpus, batch_size) if balanced else whole_documents(corpus)
        self.batch_size = batch_size
        self.segment_length = segment_length
        self.vocab_size = vocab_size
        self._verified: set[int] = set()

    def advance(self, lane: Lane | None) -> Lane | None:
        """Returns the lane after one more segment, or None if its part has ended."""
        if lane is None:
            return None
        offset = lane.offset + self.segment_length
        length = self.parts.ends[lane.part] - self.parts.begins[lane.part]
        return Lane(lane.part, offset) if offset < length else None

    def batch(self, lanes: Sequence[Lane | None]) -> Batch:
        """Returns the next segment of each of the B lanes; None is an idle lane.

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
        """Returns the token before the lane's next targets, then these: [n + 1], n at most N."""
        document = int(self.parts.documents[lane.part])
        if document not in self._verified:
            self.corpus.verify(document)
            self._verified.add(document)
        begin = int(self.parts.begins[lane.part]) + lane.offset
        end = min(int(self.parts.ends[lane.part]), begin + self.segment_length)
        if begin > self.corpus.span(document)[0]:
            stream = self.corpus.tokens[begin - 1 : end]
        else:
            start = self.corpus.beginning_of_document
            stream = np.concatenate([[start], self.corpus.tokens[begin:end]])
        if stream.max() >= self.vocab_size:
            raise DataError(
                f"{self.corpus.origin}: document {self.corpus.ids[document]!r} has token id "
                f"{stream.max()}, outside the vocabulary of {self.vocab_size}: its tokens are "
                "damaged; tokenize the corpus again."
            )
        return stream


def epoch_order(number: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the random order of the parts in an epoch, a permutation [number].

    It sorts raw words of PCG64 because NumPy promises only these to be the same in every version.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(number)
    return np.argsort(words, kind="stable")


class TrainingLanes:
    """An endless iterator of batches over the documents of a corpus in random order.

    Every epoch is a new permutation of the documents, or of their parts (`balanced_parts`), a
    function of `seed` and the number of the epoch alone, and holds every token once. A lane whose
    part has ended takes the next one of the order. Epochs follow one another without a gap, so no
    lane is ever idle. Every process follows all lanes and reads the tokens of its own, so what a
    lane reads does not depend on the number of processes.

    Args:
      corpus, batch_size, segment_length, vocab_size: as of `LaneReader`; B counts all hosts' lanes.
      seed: seed of the order, at least 0.
      rows: the lanes of this process; all lanes by default.

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
        self._reader = LaneReader(corpus, batch_size, segment_length, vocab_size, balanced=True)
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
        self._order = epoch_order(len(self._reader.parts.begins), self._seed, epoch)
        self._epoch, self._cursor = epoch, 0

    def _next_part(self) -> int:
        if self._cursor == len(self._order):
            self._start_epoch(self._epoch + 1)
        self._cursor += 1
        return int(self._order[self._cursor - 1])

    def __iter__(self) -> "TrainingLanes":
        return self

    def __next__(self) -> Batch:
        """Returns the next segment of every lane among `rows`."""
        lanes = [lane or Lane(self._next_part()) for lane in self._lanes]
        self._lanes = [self._reader.advance(lane) for lane in lanes]
        return self._reader.batch([lanes[row] for row in self._rows])

    @property
    def position(self) -> dict[str, Any]:
        """The position after the batches taken so far, as a small JSON object.

        "epoch" and "cursor" say how many parts of which epoch have been opened. "lanes" has the
        pair (index of the part, offset in tokens) of every lane, or None where the next batch
        opens a part. The rest must be unchanged for `restore`.
        """
        lanes = [lane and list(lane) for lane in self._lanes]
        return self._identity | {"epoch": self._epoch, "cursor": self._cursor, "lanes": lanes}

    def restore(self, position: dict[str, Any]) -> None:
        """Continues at a `position`, with exactly the batches that followed it.

        With another segment length the lanes continue at the same tokens, cut differently.

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

    The longest documents come first, equally long ones in the order of the corpus, so that lanes
    end at about the same time. A mean over the targets, weighted by the mask, depends on neither
    the batch size nor the segment length.

    Arguments and errors are those of `TrainingLanes`.
    """
    reader = LaneReader(corpus, batch_size, segment_length, vocab_size)
    rows = range(batch_size) if rows is None else rows
    return (reader.batch([lanes[row] for row in rows]) for lanes in evaluation_lanes(reader))


def evaluation_lanes(reader: LaneReader) -> Iterator[list[Lane | None]]:
    """Yields the positions of a reader's lanes, batch after batch, in `evaluation_batches`."""
    corpus = reader.corpus
    opened = map(Lane, sorted(range(len(corpus)), key=lambda index: -corpus.length(index)))
    lanes: list[Lane | None] = [None] * reader.batch_size
    while any(lanes := [lane or next(opened, None) for lane in lanes]):
        yield lanes
        lanes = [reader.advance(lane) for lane in lanes]
