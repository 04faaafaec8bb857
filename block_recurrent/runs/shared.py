"""What several processes do about the files of a run."""

from collections.abc import Callable
from typing import TypeVar

from block_recurrent.config import DataConfig
from block_recurrent.parallel import processes

T = TypeVar("T")


def load_by_all(config: DataConfig, load: Callable[[], T]) -> T:
    """Documents, read by all processes, process 0 first where that makes a token cache."""
    if processes.several() and config.source == "tfds":
        processes.decided(lambda: bool(load()))
    return processes.together(load)
