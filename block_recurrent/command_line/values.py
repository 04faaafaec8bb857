"""Values of options, checked when the command line is read."""

import argparse
import re
from pathlib import Path

from block_recurrent.runs.trained import BEST, NEWEST


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def file_to_write(text: str) -> Path:
    """The path of a file, which may exist; no directory."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    return Path(text)


def checkpoint(text: str) -> str | int:
    """The newest checkpoint, the best one, or that of a step."""
    if text in (NEWEST, BEST):
        return text
    if not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError(f"must be {NEWEST}, {BEST} or a step, not {text!r}")
    return int(text)


def check_prompt(path: str) -> None:
    """Raises ValueError unless there is a file of this name that can be read, or it is `-`."""
    try:
        if path != "-":
            Path(path).open("rb").close()
    except OSError as error:
        raise ValueError(f"--prompt={path}: {error.strerror}") from error
