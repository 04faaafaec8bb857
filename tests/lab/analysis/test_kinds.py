"""Laws of the kinds of tokens."""

import pytest

from block_recurrent.data import ByteTokenizer
from block_recurrent.lab.analysis.kinds import KINDS, kind_of, kinds_of_corpus
from tests.lab.analysis.corpora import corpus_of


@pytest.mark.parametrize(
    "spelling, kind",
    [
        (b"\n", "line breaks"),
        (b".\r\n", "line breaks"),
        (b" \t", "other white space"),
        (b" the", "letters and digits"),
        (b"7", "letters and digits"),
        (b"\xc3", "letters and digits"),
        (b" (", "other"),
        (b"_", "other"),
        (b"", "other"),
    ],
)
def test_a_token_is_of_the_kind_of_its_spelling(spelling, kind):
    assert KINDS[kind_of(spelling)] == kind


def test_every_token_of_every_document_has_a_kind():
    found = kinds_of_corpus(corpus_of("a b\n", "é!"), ByteTokenizer())
    assert [kinds.tolist() for kinds in found] == [[2, 1, 2, 0], [2, 2, 3]]
