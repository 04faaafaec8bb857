"""Laws of a corpus as tokens: nothing lost between the documents, and told when the text was."""

import numpy as np
import pytest

from block_recurrent.data import ByteTokenizer, Corpus, DataError, Document, tokenize
from block_recurrent.data.tokenized import token_type

TEXTS = ["one two", "é\n", " three  four "]
CORPUS = Corpus(tuple(Document(f"d{i}", "", text) for i, text in enumerate(TEXTS)), "mine")


class Letters(ByteTokenizer):
    """Knows only some letters; what it does not know is token 0."""

    name = "letters"

    def __init__(self, known: bytes, shift: int = 0):
        self.known, self.shift = known, shift

    def encode(self, text: str) -> np.ndarray:
        tokens = super().encode(text)
        return np.where(np.isin(tokens, list(self.known)), tokens, 0) + self.shift


def test_documents_follow_one_another_without_loss():
    tokens = tokenize(CORPUS, ByteTokenizer())
    assert len(tokens) == 3 and list(tokens.ids) == ["d0", "d1", "d2"]
    for index, text in enumerate(TEXTS):
        begin, end = tokens.span(index)
        assert tokens.tokens[begin:end].tobytes() == text.encode()
        assert tokens.length(index) == tokens.byte_counts[index] == len(text.encode())
    assert tokens.span(2)[1] == len(tokens.tokens)
    assert tokens.word_counts.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("vocab_size", "size"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)]
)
def test_tokens_are_kept_in_the_smallest_type(vocab_size, size):
    dtype = token_type(vocab_size)
    assert dtype.itemsize == size and dtype.kind == "u" and np.iinfo(dtype).max >= vocab_size - 1


def test_fingerprint_follows_from_ids_tokens_and_tokenizer():
    def fingerprint(documents=CORPUS.documents, tokenizer=None, origin="mine"):
        return tokenize(Corpus(documents, origin), tokenizer or ByteTokenizer()).fingerprint

    first, *others = CORPUS.documents
    assert fingerprint() == fingerprint(origin="elsewhere")
    different = [
        fingerprint(CORPUS.documents[::-1]),
        fingerprint((first._replace(id="other"), *others)),
        fingerprint((first._replace(text="one tw0"), *others)),
        fingerprint(tuple(others)),
        fingerprint(tokenizer=Letters(bytes(range(256)))),
    ]
    assert len({fingerprint(), *different}) == 6


def test_the_token_that_begins_documents_ends_them_where_asked():
    class Shifted(ByteTokenizer):
        name, vocab_size, beginning_of_document = "shifted", 257, 256

    for tokenizer in (ByteTokenizer(), Shifted()):
        bare, ending = (tokenize(CORPUS, tokenizer, end_of_document=ends) for ends in (False, True))
        for index in range(len(CORPUS.documents)):
            own, other = (each.tokens[slice(*each.span(index))] for each in (bare, ending))
            np.testing.assert_array_equal(other, [*own, tokenizer.beginning_of_document])
        assert ending.fingerprint != bare.fingerprint
        assert ending.lost == bare.lost == 0 and "bytes, 26 tokens" in ending.summary()
        for name in ("byte_counts", "word_counts", "vocab_size", "tokenizer"):
            np.testing.assert_array_equal(getattr(ending, name), getattr(bare, name))


def test_lost_text_is_told_with_its_share():
    known = tokenize(CORPUS, Letters(bytes(range(256))))
    assert known.lost == 0 and "WARNING" not in known.summary()
    lossy = tokenize(CORPUS, Letters(b"one tw\n"))
    assert lossy.lost == sum(byte not in b"one tw\n" for byte in "".join(TEXTS).encode())
    share = lossy.lost / sum(len(text.encode()) for text in TEXTS)
    assert f"WARNING: the vocabulary loses {share:.2%} of the bytes" in lossy.summary()
    assert "WARNING" not in tokenize(CORPUS, ByteTokenizer()).summary()


def test_summary_has_the_counts_and_what_was_dropped():
    corpus = Corpus(CORPUS.documents, "mine", {"empty": 2}, repaired=1)
    assert tokenize(corpus, ByteTokenizer()).summary().splitlines() == [
        "mine: 3 documents, 23 bytes",
        "dropped: 2 empty; repaired, with invalid UTF-8: 1",
    ]
    assert "23 bytes, 23 tokens" in tokenize(corpus, Letters(bytes(range(256)))).summary()


def test_document_that_cannot_be_tokenized_is_an_error():
    with pytest.raises(DataError, match="mine: document 'e' has no tokens"):
        tokenize(Corpus((Document("e", "", ""),), "mine"), ByteTokenizer())
    with pytest.raises(DataError, match="mine: document 'd0' has token id 310, outside .* 256"):
        tokenize(CORPUS, Letters(b"n", shift=200))
