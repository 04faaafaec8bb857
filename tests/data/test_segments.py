"""Laws of segments: padding, and the errors for data that does not fit the model."""

import numpy as np
import pytest

from block_recurrent.data import ByteTokenizer, Corpus, DataError, Document
from block_recurrent.data.segments import LaneReader

CORPUS = Corpus((Document("a", "", "abcdef"), Document("b", "", "")), "mine")


class Shifted(ByteTokenizer):
    """A tokenizer whose ids leave the vocabulary it promises."""

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text) + 200


def reader(corpus=CORPUS, tokenizer=None, batch_size=2, segment_length=4, vocab_size=256):
    tokenizer = tokenizer or ByteTokenizer()
    return LaneReader(corpus, tokenizer, batch_size, segment_length, vocab_size)


def test_padding_is_zero_and_masked_and_an_idle_lane_is_all_padding():
    lanes = reader()
    first = lanes.open(0)
    last = lanes.advance(first)
    batch = lanes.batch([last, None])
    assert last is not None and lanes.advance(last) is None and lanes.advance(None) is None
    np.testing.assert_array_equal(batch.mask, [[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch.inputs, [[*b"de", 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.targets, [[*b"ef", 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.start_of_document, [False, False])


def test_document_starts_once_after_its_beginning():
    lanes = reader()
    batch = lanes.batch([lanes.open(0), lanes.open(0, offset=4)])
    np.testing.assert_array_equal(batch.start_of_document, [True, False])
    np.testing.assert_array_equal(batch.inputs[0], [0, *b"abc"])


def test_types_and_shapes():
    batch = reader(batch_size=1).batch([None])
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.bool_, np.bool_]
    assert [array.shape for array in batch] == [(1, 4), (1, 4), (1, 4), (1,)]


def test_token_outside_the_vocabulary_names_corpus_document_and_id():
    with pytest.raises(DataError, match="mine: document 'a' has token id 297, outside .* of 256"):
        reader(tokenizer=Shifted()).open(0)


def test_document_without_tokens_is_an_error():
    with pytest.raises(DataError, match="mine: document 'b' has no tokens"):
        reader().open(1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 255}, "vocab_size = 255 is too small for tokenizer 'bytes': .* 256"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"segment_length": 0}, "segment_length = 0"),
        ({"corpus": Corpus((), "mine")}, "mine has no documents"),
    ],
)
def test_wrong_argument_is_an_error(options, sentence):
    with pytest.raises(DataError, match=sentence):
        reader(**options)
