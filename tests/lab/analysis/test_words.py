"""Laws of words, their losses and their distances, and of the kinds of tokens."""

import numpy as np
import pytest

from block_recurrent.data import ByteTokenizer
from block_recurrent.lab.analysis.token_losses import Reach
from block_recurrent.lab.analysis.words import (
    FIRST,
    KINDS,
    classes,
    distance_edges,
    kind_of,
    kinds_of_corpus,
    largest_gains,
    words_of,
    words_of_corpus,
)
from tests.lab.analysis.corpora import corpus_of


def words_of_text(text):
    return words_of([bytes([byte]) for byte in text.encode()])


def test_words_of_bytes_begin_where_they_stand_in_the_text():
    found = words_of_text("a_1 née, a_1\nnée")
    assert found.text == ["a_1", "née", "a_1", "née"]
    assert found.position.tolist() == [0, 4, 10, 14]  # é has two bytes
    assert found.distance.tolist() == [FIRST, FIRST, 10, 10]


def test_a_words_loss_is_the_sum_of_its_tokens():
    found = words_of_text("ab, né")
    sums = found.sums(np.arange(7.0))
    assert sums.tolist() == [0 + 1, 4 + 5 + 6]
    assert words_of_text(" ,;").sums(np.ones(3)).tolist() == []
    assert words_of([]).text == []


def test_pieces_count_to_the_first_word_that_they_have_a_part_of():
    found = words_of([b" the", b" fo", b"x", b".x the", b"", b"\xc3", b"\xa9", b"!"])
    # The first letters of "theé" are in a piece that counts to "x", the rest is its own.
    assert found.text == ["the", "fox", "x", "theé"]
    assert found.position.tolist() == [0, 1, 3, 5]
    found = words_of([b" the", b".x the", b"re"])
    assert found.text == ["the", "x", "there"] and found.position.tolist() == [0, 1, 2]
    assert found.sums(np.array([1.0, 2.0, 4.0])).tolist() == [1.0, 2.0, 4.0]


def test_bytes_that_are_no_text_separate_words():
    found = words_of([b"ab", b"\xff", b"cd"])
    assert found.text == ["ab", "cd"] and found.position.tolist() == [0, 2]


def test_classes_end_at_window_and_reach():
    distance = np.array([FIRST, 1, 4, 5, 12, 13])
    assert classes(distance, Reach(4, 12)).tolist() == [3, 0, 0, 1, 1, 2]
    assert classes(distance, Reach(0, 0)).tolist() == [3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("longest, last", [(1, 2), (2, 4), (3, 4), (4, 8)])
def test_edges_of_distances_hold_the_longest(longest, last):
    edges = distance_edges(longest)
    assert edges[0] == 1 and edges[-1] == last and (np.diff(edges) == edges[:-1]).all()


def test_the_largest_gains_come_first_from_all_documents():
    words = words_of_corpus(corpus_of("Anna met bob", "a_b x Anna"), ByteTokenizer())
    found = largest_gains(words, [np.array([3.0, 1, 2]), np.array([4.0, -1, 5])])[:4]
    assert [(gain.word, gain.document, gain.position) for gain in found] == [
        ("Anna", 1, 6),
        ("a_b", 1, 0),
        ("Anna", 0, 0),
        ("bob", 0, 9),
    ]
    assert [gain.bits for gain in found] == [5, 4, 3, 2]
    assert [gain.capital for gain in found] == [True, False, True, False]
    assert [gain.identifier for gain in found] == [False, True, False, False]


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
