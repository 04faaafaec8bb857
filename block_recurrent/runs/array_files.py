"""Trees of arrays in a folder, through Orbax."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def save_arrays(folder: Path, tree: Any) -> None:
    """Writes a tree of NumPy arrays; errors are of any kind."""
    with _hushed(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)


def load_arrays(folder: Path, like: Any = None) -> Any:
    """The arrays in a folder; errors are of any kind.

    Args:
      folder: of `save_arrays`.
      like: arrays or `jax.ShapeDtypeStruct`s of the same tree, the result has their shardings and
        is on the first device where they have none; NumPy arrays unless given.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first), like
    )
    with _hushed(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, target)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps standard error free of what Orbax says besides the error that it raises.

    It logs the same error from each of its threads, with tracebacks; and what it leaves running
    complains by the hundred of an event loop that is gone, even later, so that the hook stays where
    something has failed.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    def wanted(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname

    sys.unraisablehook = hook
    logger.addFilter(wanted)
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.removeFilter(wanted)
