"""One place where the known failures become a sentence or two and an exit status.

    0   done                             5   loss, gradient or parameters are not finite
    1   anything else                    6   out of memory
    2   command line or configuration    7   the device asked for is not there
    3   data                             130, 143   stopped by SIGINT or SIGTERM
    4   checkpoints or work directory

`--debug`, anywhere on the command line, shows the traceback instead of the sentence.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import DataError
from block_recurrent.training.checkpoints import CheckpointError, SaveFailed
from block_recurrent.training.lock import WorkdirInUse
from block_recurrent.training.signals import Stopped
from configure import ConfigError

DEBUG = "--debug"
STATUSES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 3,
    CheckpointError: 4,
    SaveFailed: 4,
    WorkdirInUse: 4,
    FloatingPointError: 5,
    MemoryError: 6,
}
Program = Callable[..., int]


def reported(program: Program) -> Program:
    """Makes a program's known failures sentences; unknown ones keep their traceback."""

    @functools.wraps(program)
    def main(argv: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        debug = DEBUG in words
        try:
            return program([word for word in words if word != DEBUG])
        except Stopped as stopped:
            return stopped.exit_status
        except Exception as error:
            described = None if debug else describe(error)
            if described is None:
                raise
            status, sentence = described
            print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
            return status

    return main


def describe(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the sentence of a known failure, else None."""
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return status, str(error) or "out of memory"
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return 6, f"out of memory: {text.splitlines()[0]}"
    if isinstance(error, RuntimeError) and "backend" in text:
        asked = os.environ.get("JAX_PLATFORMS", "")
        return 7, f"the device asked for (JAX_PLATFORMS={asked!r}) is not there: {text}"
    if isinstance(error, OSError):
        return 1, f"{error.filename or 'a file'}: {error.strerror or error}"
    return None


@contextlib.contextmanager
def knobs_named(config: ExperimentConfig) -> Iterator[None]:
    """Within the context, an error for want of memory says what would need less, and its value."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        model, data = config.model, config.data
        raise MemoryError(
            f"out of memory; what needs less: data.batch_size (now {data.batch_size}), "
            f"data.segment_length ({data.segment_length}), model.remat = 'layer' "
            f"({model.remat!r}), model.dtype = 'bfloat16' ({model.dtype!r}); --dry_run shows an "
            "estimate"
        ) from error
