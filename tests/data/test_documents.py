"""Laws of documents: counts, and a split that depends on the id alone."""

import hashlib
import itertools

from block_recurrent.data import Document, byte_count, split_of, word_count

IDS = [f"document {number}" for number in range(2000)]


def test_bytes_are_utf8_and_words_are_separated_by_any_whitespace():
    document = Document("a", "", " né\tà\n\nla  fin\u3000. ")
    assert byte_count(document) == len(document.text.encode("utf-8"))
    assert word_count(document) == 5


def test_split_is_the_sha256_of_the_id():
    """So it is the same in every process and on every machine."""
    for document_id in IDS[:200]:
        digest = hashlib.sha256(document_id.encode()).digest()
        bucket = int.from_bytes(digest[:8], "big") % 100
        expected = "validation" if bucket < 30 else "test" if bucket >= 80 else "train"
        assert split_of(document_id, 30, 20) == expected


def test_split_has_about_the_expected_share():
    share = sum(split_of(document_id, 30) == "validation" for document_id in IDS) / len(IDS)
    assert abs(share - 0.3) < 0.05


def test_larger_percentage_only_moves_documents_to_validation():
    validation = [
        {document_id for document_id in IDS if split_of(document_id, percent) == "validation"}
        for percent in range(0, 101, 10)
    ]
    assert all(small < large for small, large in itertools.pairwise(validation))
    assert validation[0] == set() and validation[-1] == set(IDS)


def test_any_id_has_a_split():
    assert {split_of(name, 50) for name in ("", "é", "\udcff", "a\0b")} <= {"train", "validation"}
