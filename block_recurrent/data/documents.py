"""What a document is: its text, how its length is counted, and which split it belongs to."""

import codecs
import hashlib
import re
from typing import NamedTuple

SPLITS = ("train", "validation", "test")
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
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
    bucket = bucket_of(document_id)
    if bucket < validation_percent:
        return "validation"
    return "test" if bucket >= 100 - test_percent else "train"


def bucket_of(document_id: str) -> int:
    """Returns the number from 0 to 99 by which `split_of` decides."""
    digest = hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 100


def decode(data: bytes) -> tuple[str, bool]:
    """Returns UTF-8 `data` as text, invalid bytes as U+FFFD, and whether there were any."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), True


def decode_file(data: bytes, where: str) -> tuple[str, bool]:
    """Returns the text of a whole file, and whether any of it was invalid and became U+FFFD.

    A byte order mark says whether it is UTF-8, UTF-16 or UTF-32, and is left out. Without one it is
    UTF-8.

    Raises:
      DataError: it seems to be UTF-16 without a byte order mark. The message begins with `where`.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, "replace")
            return text, "\ufffd" in text
    zeros = [data[start::2].count(0) / max(len(data[start::2]), 1) for start in (0, 1)]
    if len(data) > 1 and max(zeros) > 0.5 and min(zeros) < 0.1:
        raise DataError(
            f"{where}: every second byte is 0, as in UTF-16, without a byte order mark; convert it "
            "to UTF-8."
        )
    return decode(data)


def replace_lone_surrogates(text: str) -> tuple[str, bool]:
    """Returns `text` with U+FFFD for what UTF-8 cannot encode, and whether there was any."""
    replaced, count = _LONE_SURROGATE.subn("\ufffd", text)
    return replaced, count > 0
