"""Text that UTF-8 can encode, from bytes and from strings that it cannot encode."""

import re

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
