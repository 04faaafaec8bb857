"""What a document is: its text, how its length is counted, and which split it belongs to."""

import hashlib
import re
from typing import NamedTuple

SPLITS = ("train", "validation", "test")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """A corpus, a tokenizer or a position in the data that cannot be used."""


class Document(NamedTuple):
    """One text that is read from its start to its end.

    Attributes:
      id: the id, unique within the corpus, which alone decides the split.
      title: a title for people; may be empty.
      text: the text, which UTF-8 can encode.
    """

    id: str
    title: str
    text: str


def byte_count(document: Document) -> int:
    """Returns the number of UTF-8 bytes of the text."""
    return len(document.text.encode())


def word_count(document: Document) -> int:
    """Returns the number of whitespace-separated words of the text.

    Word-level perplexity divides by it, whatever the tokenizer.
    """
    return len(document.text.split())


def split_of(document_id: str, validation_percent: int, test_percent: int = 0) -> str:
    """Returns the split of a document: "train", "validation" or "test".

    The first 8 bytes of the SHA-256 of its id, as a big-endian number modulo 100, decide: the
    lowest `validation_percent` values are for validation, the highest `test_percent` for test. So
    the split of a document depends neither on the other documents nor on the machine, and a larger
    percentage only moves documents out of train.

    Args:
      document_id: the id of the document.
      validation_percent: expected share of the documents for validation, 0 to 100.
      test_percent: expected share of the documents for test, 0 to 100 - `validation_percent`.
    """
    digest = hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    if bucket < validation_percent:
        return "validation"
    return "test" if bucket >= 100 - test_percent else "train"


def decode(data: bytes) -> tuple[str, bool]:
    """Returns UTF-8 `data` as text, invalid bytes as U+FFFD, and whether there were any."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), True


def replace_lone_surrogates(text: str) -> tuple[str, bool]:
    """Returns `text` with U+FFFD for what UTF-8 cannot encode, and whether there was any."""
    replaced, count = _LONE_SURROGATE.subn("\ufffd", text)
    return replaced, count > 0
