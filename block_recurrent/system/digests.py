"""Digests by which damage is noticed: XXH3, which reads as fast as memory gives.

What names content, such as a vocabulary or a corpus, is a SHA-256.
"""

import json
from typing import Any

import xxhash

new_digest = xxhash.xxh3_64


def digest(data: Any) -> str:
    """XXH3 of contiguous bytes, 16 hexadecimal digits."""
    return new_digest(data).hexdigest()


def digest_number(data: Any) -> int:
    """XXH3 of contiguous bytes as a signed number of 64 bits, for arrays of numbers."""
    return int.from_bytes(new_digest(data).digest(), "big", signed=True)


def seal(value: Any) -> str:
    """JSON text of a value and of its digest."""
    return json.dumps({"value": value, "xxh3": digest(json.dumps(value).encode())})


def unseal(text: bytes) -> Any:
    """The value that was sealed.

    Raises:
      ValueError: the text is not what `seal` made.
    """
    sealed = json.loads(text)
    value = sealed.get("value") if isinstance(sealed, dict) else None
    if seal(value).encode() != text:
        raise ValueError("its digest differs")
    return value
