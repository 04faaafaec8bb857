"""The error of this package and the sentence for a misspelt name."""

import difflib
from collections.abc import Collection


class DataError(ValueError):
    """A corpus, a tokenizer or a position in the data that cannot be used as asked."""


def unknown_name(kind: str, name: str, choices: Collection[str]) -> DataError:
    """Returns the error for a `name` outside `choices`, with the nearest valid one."""
    nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)[0]
    return DataError(
        f"unknown {kind} {name!r}: did you mean {nearest!r}? Choose one of {', '.join(choices)}."
    )
