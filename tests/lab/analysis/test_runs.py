"""Which documents are analysed."""

import pytest

from block_recurrent.data import ByteTokenizer, DataError
from block_recurrent.lab.analysis.runs import one_document, take_documents
from tests.lab.analysis.corpora import corpus_of

BYTES = ByteTokenizer()


def test_all_documents_whole_are_the_corpus():
    corpus = corpus_of("one two", "three", "née")
    taken = take_documents(corpus, BYTES, 9, 100)
    assert taken.fingerprint == corpus.fingerprint and taken.ids == corpus.ids
    assert taken.byte_counts.tolist() == corpus.byte_counts.tolist()
    assert taken.word_counts.tolist() == corpus.word_counts.tolist()


def test_some_are_spread_evenly_and_cut():
    taken = take_documents(corpus_of(*(f"{n} text" for n in range(9))), BYTES, 3, 3)
    assert taken.ids == ("d0", "d4", "d8")
    assert bytes(taken.tokens.tolist()) == b"0 t4 t8 t" and taken.ends.tolist() == [3, 6, 9]


def test_a_text_of_ones_own_must_have_some(tmp_path):
    novel = tmp_path / "novel.txt"
    novel.write_text("Once")
    assert one_document(novel, BYTES).ids == ("novel.txt",)
    novel.write_text("")
    with pytest.raises(DataError, match=r"novel\.txt is empty"):
        one_document(novel, BYTES)
    with pytest.raises(DataError, match="no documents"):
        take_documents(corpus_of(), BYTES, 3, 3)
