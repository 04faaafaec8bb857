"""Type hints of fields: whether a value is of one, and how messages say so."""

import math
import re
import types
import typing
from collections.abc import Collection
from typing import Any, Literal

from block_recurrent.system.text import did_you_mean

LARGEST = 2**63


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a type.

    An int is a float, too, and has 64 bits at most. A bool is no number. Numbers are finite.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(has_type(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(has_type(item, arguments[0]) for item in value)
    if hint in (int, float):
        known = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return known and abs(value) < (LARGEST if isinstance(value, int) else math.inf)
    return isinstance(value, hint)


def type_error(name: str, value: Any, hint: Any) -> Exception:
    """The error for the value of a field `name` that is not of its type."""
    if typing.get_origin(hint) is Literal:
        return ValueError(f"{name} {must_be_one_of(typing.get_args(hint), value)}")
    if isinstance(value, float) and not math.isfinite(value):
        return ValueError(f"{name} must be finite, not {value}")
    if isinstance(value, int) and abs(value) >= LARGEST:
        return ValueError(
            f"{name} must be between -2**63 and 2**63, but has {value.bit_length()} bits"
        )
    sentence = f"{name} must be {type_name(hint)}, not {value!r} ({type(value).__name__})"
    if typing.get_origin(hint) is tuple and has_type(value, typing.get_args(hint)[0]):
        sentence += f"; write ({value!r},)"
    return TypeError(sentence)


def type_name(hint: Any) -> str:
    """A type as people write it; of `Literal` its values."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))


def must_be_one_of(choices: Collection[str], value: Any) -> str:
    """The end of a message about a wrong value, with all choices and the nearest one."""
    nearest = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"must be one of {', '.join(map(repr, choices))}, not {value!r}{nearest}"
