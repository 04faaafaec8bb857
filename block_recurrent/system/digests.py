"""SHA-256 digests that detect damaged data; SHA-256 needs no package and runs in hardware."""

import hashlib
import json
from typing import Any

from block_recurrent.system.text import parse_json


def digest(data: Any) -> str:
    """The SHA-256 of contiguous bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_number(data: Any) -> int:
    """The first 64 bits of the SHA-256 of contiguous bytes, as a signed number."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


def seal(value: Any) -> str:
    """A value and its digest, as JSON text."""
    return json.dumps({"value": value, "sha256": digest(json.dumps(value).encode())})


def unseal(text: bytes) -> Any:
    """The value in a text that `seal` made.

    Raises:
      ValueError: `seal` did not make this text.
    """
    sealed = parse_json(text)
    value = sealed.get("value") if isinstance(sealed, dict) else None
    if seal(value).encode() != text:
        raise ValueError("its digest differs")
    return value
