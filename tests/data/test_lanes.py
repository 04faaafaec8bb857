"""Laws of lanes: segments, conservation of tokens, order, and resuming at any step."""

import dataclasses
import itertools
import json
import operator
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from block_recurrent.data import (
    Batch,
    ByteTokenizer,
    Corpus,
    DataError,
    Document,
    TokenizedCorpus,
    TrainingLanes,
    evaluation_batches,
    tokenize,
)
from block_recurrent.data.lanes import (
    Lane,
    LaneReader,
    balanced_parts,
    describe_batches,
    epoch_order,
    whole_documents,
)

TEXTS = [chr(97 + number) * length for number, length in enumerate([1, 7, 8, 9, 40, 16, 3])]
CORPUS = Corpus(tuple(Document(f"d{number}", "", text) for number, text in enumerate(TEXTS)))
SIZES = list(itertools.product([1, 2, 3, 10], [1, 4, 8, 64]))


TOKENS = tokenize(CORPUS, ByteTokenizer())


def evaluate(batch_size, segment_length) -> list[Batch]:
    return list(evaluation_batches(TOKENS, batch_size, segment_length, 256))


def training(batch_size=3, segment_length=8, seed=5, corpus=CORPUS, **options) -> TrainingLanes:
    tokens = tokenize(corpus, ByteTokenizer())
    return TrainingLanes(tokens, batch_size, segment_length, 256, seed=seed, **options)


def documents_read(batches: Iterable[Batch]) -> list[tuple[list[int], list[int]]]:
    """Returns the inputs and targets of every document, put together again lane by lane."""
    lanes = zip(*(zip(*batch, strict=True) for batch in batches), strict=True)
    documents = []
    for inputs, targets, mask, start in itertools.chain(*lanes):
        if start:
            documents.append(([], []))
        if mask.any():
            documents[-1][0].extend(inputs[mask].tolist())
            documents[-1][1].extend(targets[mask].tolist())
    return documents


def changed(**values) -> Corpus:
    """Returns the corpus with another first document."""
    first, *others = CORPUS.documents
    return Corpus((first._replace(**values), *others))


def assert_same(left: Batch, right: Batch) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("batch_size", "segment_length"), SIZES)
def test_evaluation_has_every_document_once(batch_size, segment_length):
    read = documents_read(evaluate(batch_size, segment_length))
    assert sorted(bytes(targets).decode() for _, targets in read) == sorted(TEXTS)


@pytest.mark.parametrize(("batch_size", "segment_length"), SIZES)
def test_inputs_are_the_beginning_and_the_targets_before(batch_size, segment_length):
    for inputs, targets in documents_read(evaluate(batch_size, segment_length)):
        assert inputs == [ByteTokenizer.beginning_of_document, *targets[:-1]]


@pytest.mark.parametrize(("batch_size", "segment_length"), SIZES)
def test_mean_over_tokens_does_not_depend_on_the_sizes(batch_size, segment_length):
    batches = evaluate(batch_size, segment_length)
    assert sum(batch.mask.sum() for batch in batches) == sum(map(len, TEXTS))
    total = sum(batch.targets[batch.mask].sum() for batch in batches)
    assert total == sum(sum(text.encode()) for text in TEXTS)


@pytest.mark.parametrize(("batch_size", "segment_length"), SIZES)
def test_only_the_end_of_a_segment_is_padded(batch_size, segment_length):
    batches = evaluate(batch_size, segment_length)
    assert all(batch.mask.any() for batch in batches)
    for batch in batches:
        assert (batch.mask[:, :-1] >= batch.mask[:, 1:]).all()
        assert not batch.inputs[~batch.mask].any() and not batch.targets[~batch.mask].any()


def test_lanes_never_idle_before_the_last_document_is_opened():
    batches = evaluate(3, 4)
    opened = np.cumsum([batch.start_of_document.sum() for batch in batches])
    for batch, count in zip(batches, opened, strict=True):
        assert batch.mask.any(axis=1).all() or count == len(TEXTS)


@pytest.mark.parametrize(("batch_size", "segment_length"), SIZES)
def test_training_opens_every_document_once_an_epoch_and_never_idles(batch_size, segment_length):
    corpus = Corpus(CORPUS.documents * batch_size)
    lanes = training(batch_size, segment_length, corpus=corpus)
    for batch in itertools.islice(lanes, 60):
        assert batch.mask.any(axis=1).all()
    position = lanes.position
    read = documents_read(itertools.islice(training(batch_size, segment_length, corpus=corpus), 60))
    opened = Counter(chr(targets[0]) for _, targets in read)
    assert opened.total() == position["epoch"] * len(corpus.documents) + position["cursor"]
    fewest = position["epoch"] * batch_size
    assert set(opened.values()) <= set(range(fewest, fewest + batch_size + 1))


def test_training_reads_whole_documents_in_the_order_of_the_epochs():
    read = documents_read(itertools.islice(training(batch_size=1), 200))
    order = itertools.chain(*(epoch_order(len(TEXTS), seed=5, epoch=epoch) for epoch in range(20)))
    for (inputs, targets), document in zip(read[:-1], order, strict=False):
        assert bytes(targets).decode() == TEXTS[document]
        assert inputs == [0, *targets[:-1]]


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    np.testing.assert_array_equal(orders[0], epoch_order(50, 0, 0))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_restored_position_continues_identically_at_every_step(batch_size):
    lanes = training(batch_size)
    positions, batches = [], []
    for _ in range(40):
        positions.append(json.dumps(lanes.position))
        batches.append(next(lanes))
    for step, position in enumerate(positions):
        resumed = training(batch_size)
        resumed.restore(json.loads(position))
        for expected in batches[step : step + 8]:
            assert_same(next(resumed), expected)


def test_position_is_taken_with_another_segment_length():
    lanes, resumed = training(batch_size=1, segment_length=8), training(1, segment_length=2)
    while not lanes.position["lanes"][0]:
        next(lanes)
    resumed.restore(lanes.position)
    expected = next(lanes)
    pieces = list(itertools.islice(resumed, expected.mask.sum().item() // 2))
    targets = np.concatenate([piece.targets[piece.mask] for piece in pieces])
    np.testing.assert_array_equal(targets, expected.targets[expected.mask][: len(targets)])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch_size": 2}, "batch_size = 3, here it is 2"),
        ({"seed": 6}, "seed = 5, here it is 6"),
        ({"corpus": Corpus(CORPUS.documents[1:])}, "documents = 7, here it is 6"),
        ({"corpus": Corpus(CORPUS.documents[::-1])}, "corpus"),
        ({"corpus": changed(id="renamed")}, "corpus"),
        ({"corpus": changed(text="longer")}, "corpus"),
    ],
)
def test_position_of_other_data_is_an_error(options, name):
    position = training().position
    with pytest.raises(DataError, match=f"the position was saved with {name}"):
        training(**options).restore(position)


def test_wrong_arguments_are_errors_at_once():
    with pytest.raises(DataError, match="seed = -1"):
        training(seed=-1)
    with pytest.raises(DataError, match="vocab_size = 10"):
        evaluation_batches(TOKENS, 1, 1, vocab_size=10)


@pytest.mark.parametrize("share", [[range(6)], [[0, 1], [2, 5]], [[3], [0, 2, 4], [1, 5]]])
def test_processes_share_the_lanes_however_they_do(share):
    whole, parts = training(6), [training(6, rows=rows) for rows in share]
    for expected in itertools.islice(whole, 20):
        for rows, part in zip(share, parts, strict=True):
            assert_same(next(part), Batch(*(whole[list(rows)] for whole in expected)))
    assert all(part.position == whole.position for part in parts)
    each = [list(evaluation_batches(TOKENS, 6, 4, 256, rows=rows)) for rows in share]
    for expected, *pieces in zip(evaluate(6, 4), *each, strict=True):
        for rows, piece in zip(share, pieces, strict=True):
            assert_same(piece, Batch(*(whole[list(rows)] for whole in expected)))


def numbered(*lengths: int) -> TokenizedCorpus:
    """A corpus whose tokens are the numbers from 1, so that each is known by its place."""
    texts = [Document(f"d{number}", "", "x" * length) for number, length in enumerate(lengths)]
    tokens = tokenize(Corpus(tuple(texts)), ByteTokenizer())
    total = sum(lengths)
    return dataclasses.replace(
        tokens, tokens=np.arange(1, total + 1).astype("<u2"), vocab_size=total + 1
    )


FEW = [(1000,), (400, 600), (3, 5, 4, 980, 8), (7,), (300, 301, 302, 97)]


@pytest.mark.parametrize("lengths", FEW)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_an_epoch_has_every_token_once_however_few_the_documents(lengths, batch_size):
    corpus = numbered(*lengths)
    parts = balanced_parts(corpus, batch_size)
    spans = [range(begin, end) for begin, end in zip(parts.begins, parts.ends, strict=True)]
    assert list(itertools.chain(*spans)) == list(range(sum(lengths)))
    assert len(spans) >= min(batch_size, sum(lengths))
    for document, span in zip(parts.documents, spans, strict=True):
        begin, end = corpus.span(document)
        assert begin <= span.start < span.stop <= end
        assert len(span) <= -(-sum(lengths) // batch_size)


@pytest.mark.parametrize("lengths", [(1000,), (400, 600), (3, 5, 4, 980, 8)])
@pytest.mark.parametrize("segment_length", [1, 8])
def test_lanes_read_other_tokens_than_each_other(lengths, segment_length):
    """As long as an epoch lasts, no token is read twice, and it lasts for most of the tokens."""
    corpus, seen = numbered(*lengths), []
    lanes = TrainingLanes(corpus, 4, segment_length, corpus.vocab_size, seed=1)
    while (batch := next(lanes), lanes.position["epoch"])[1] == 0:
        seen.extend(batch.targets[batch.mask].tolist())
    assert len(seen) == len(set(seen)) > 750


def test_a_part_begins_with_a_cleared_state_after_the_token_before_it():
    corpus = numbered(4, 96)
    lanes = TrainingLanes(corpus, 4, 5, corpus.vocab_size)
    opened = Counter()
    for batch in itertools.islice(lanes, 50):
        for inputs, targets, _, start in zip(*batch, strict=True):
            if start:
                opened[int(targets[0])] += 1
                assert inputs[0] == (0 if targets[0] in (1, 5) else targets[0] - 1)
    assert set(opened) == {1, 5, 29, 53, 77}


def test_only_documents_longer_than_a_lanes_share_are_cut():
    corpus = numbered(25, 25, 25, 25)
    assert len(balanced_parts(corpus, 4).begins) == 4
    for found, expected in zip(balanced_parts(corpus, 4), whole_documents(corpus), strict=True):
        np.testing.assert_array_equal(found, expected)


TINY_TEXTS = (Document("a", "", "abcdef"), Document("b", "", "xy"))
TINY = tokenize(Corpus(TINY_TEXTS, "mine"), ByteTokenizer())
EMPTY = tokenize(Corpus((), "mine"), ByteTokenizer())


def reader(corpus=TINY, batch_size=2, segment_length=4, vocab_size=256):
    return LaneReader(corpus, batch_size, segment_length, vocab_size)


def test_padding_is_zero_and_masked_and_an_idle_lane_is_all_padding():
    lanes = reader()
    last = lanes.advance(Lane(0))
    batch = lanes.batch([last, None])
    assert last is not None and lanes.advance(last) is None and lanes.advance(None) is None
    np.testing.assert_array_equal(batch.mask, [[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch.inputs, [[*b"de", 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.targets, [[*b"ef", 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.start_of_document, [False, False])


def test_document_starts_once_after_its_beginning():
    batch = reader().batch([Lane(1), Lane(0, offset=4)])
    np.testing.assert_array_equal(batch.start_of_document, [True, False])
    np.testing.assert_array_equal(batch.inputs[0], [0, *b"x", 0, 0])
    np.testing.assert_array_equal(batch.targets[0], [*b"xy", 0, 0])


def test_beginning_is_the_tokenizers():
    corpus = dataclasses.replace(TINY, beginning_of_document=7)
    np.testing.assert_array_equal(reader(corpus).batch([Lane(0)]).inputs[0], [7, *b"abc"])


def test_types_and_shapes():
    batch = reader(batch_size=1).batch([None])
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.bool_, np.bool_]
    assert [array.shape for array in batch] == [(1, 4), (1, 4), (1, 4), (1,)]


def test_token_outside_the_vocabulary_names_corpus_document_and_id():
    tokens = TINY.tokens.astype(np.uint16)
    tokens[7] = 297
    lanes = reader(dataclasses.replace(TINY, tokens=tokens))
    lanes.batch([Lane(0)])
    with pytest.raises(DataError, match="mine: document 'b' has token id 297, outside .* of 256"):
        lanes.batch([Lane(1)])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 255}, "vocab_size = 255 is too small for tokenizer 'bytes': .* 256"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"segment_length": 0}, "segment_length = 0"),
        ({"corpus": EMPTY}, "mine has no documents"),
    ],
)
def test_wrong_argument_is_an_error(options, sentence):
    with pytest.raises(DataError, match=sentence):
        reader(**options)


@pytest.mark.parametrize(
    ("lengths", "batch_size", "sentences"),
    [
        ((16, 8), 1, ["100.0% of the places are targets"]),
        ((9, 3, 3, 1), 1, ["40.0% of the places are targets"]),
        ((320,), 4, ["100.0% of", "than 1/4 of the tokens: 1, read in 4 parts"]),
    ],
)
def test_a_line_says_how_full_batches_are_and_what_is_cut(lengths, batch_size, sentences):
    lines = describe_batches(numbered(*lengths), batch_size, 8).splitlines()
    assert len(lines) == len(sentences)
    assert all(map(operator.contains, lines, sentences))
