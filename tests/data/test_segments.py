"""Laws of segments: padding, and the errors for data that does not fit the model."""

import dataclasses

import numpy as np
import pytest

from block_recurrent.data import ByteTokenizer, Corpus, DataError, Document, tokenize
from block_recurrent.data.lanes import Lane, LaneReader

TEXTS = (Document("a", "", "abcdef"), Document("b", "", "xy"))
CORPUS = tokenize(Corpus(TEXTS, "mine"), ByteTokenizer())
EMPTY = tokenize(Corpus((), "mine"), ByteTokenizer())


def reader(corpus=CORPUS, batch_size=2, segment_length=4, vocab_size=256):
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
    corpus = dataclasses.replace(CORPUS, beginning_of_document=7)
    np.testing.assert_array_equal(reader(corpus).batch([Lane(0)]).inputs[0], [7, *b"abc"])


def test_types_and_shapes():
    batch = reader(batch_size=1).batch([None])
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.bool_, np.bool_]
    assert [array.shape for array in batch] == [(1, 4), (1, 4), (1, 4), (1,)]


def test_token_outside_the_vocabulary_names_corpus_document_and_id():
    tokens = CORPUS.tokens.astype(np.uint16)
    tokens[7] = 297
    lanes = reader(dataclasses.replace(CORPUS, tokens=tokens))
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
