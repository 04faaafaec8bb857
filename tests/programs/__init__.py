"""Tests of the programs in `experiments/`, and where and how they are found."""

import importlib
from collections.abc import Callable
from pathlib import Path

PROGRAMS = Path(__file__).parents[2] / "experiments"


def main_of(program: str) -> Callable[..., int]:
    """The function `main` of a program, by the name of its file without `.py`."""
    return importlib.import_module(f"experiments.{program}").main
