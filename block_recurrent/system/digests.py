"""Digests that detect damaged data: SHA-256, which needs no package and runs in hardware."""

import hashlib
import json
from typing import Any

new_digest = hashlib.sha256


def digest(data: Any) -> str:
    """Returns the SHA-256 of contiguous bytes, 64 hexadecimal digits."""
    return new_digest(data).hexdigest()


def digest_number(data: Any) -> int:
    """Returns the first 64 bits of the SHA-256 of contiguous bytes, as a signed number."""
    return int.from_bytes(new_digest(data).digest()[:8], "big", signed=True)


def seal(value: Any) -> str:
    """JSON text of a value and of its digest."""
    return json.dumps({"value": value, "sha256": digest(json.dumps(value).encode())})


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
