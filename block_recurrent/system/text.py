"""Reading JSON, and parts of messages: the nearest known name, and numbers by reason."""

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text holds.

    Raises:
      ValueError: it is no JSON, is nested too deeply, or is in another encoding.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` (did you mean 'x'?)` for the known name nearest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def count_reasons(numbers: Mapping[str, int]) -> str:
    """`2 empty; 1 unreadable` from reason -> number, sorted by reason; `none` without any."""
    counts = (f"{number:,} {reason}" for reason, number in sorted(numbers.items()))
    return "; ".join(counts) or "none"
