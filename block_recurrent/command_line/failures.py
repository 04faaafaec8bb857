"""How known failures become a message and an exit status, and how logs reach the screen.

    0   done                             5   loss, gradient or parameters are not finite
    1   anything else                    6   out of memory
    2   command line or configuration    7   the device asked for is not there
    3   data                             8   other processes were not found
    4   checkpoints or work directory    9   another process has ended
                         129, 130, 143   stopped by SIGHUP, SIGINT, SIGTERM

`--debug`, anywhere on the command line, shows the traceback instead of the message. An unknown
failure always shows its traceback.
"""

import contextlib
import functools
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from block_recurrent.command_line.parser import DEBUG
from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.data import DataError
from block_recurrent.model.attention import AttentionImpossible
from block_recurrent.parallel import processes
from block_recurrent.parallel.processes import ClusterUnreachable, ProcessLost
from block_recurrent.runs.errors import CheckpointError, SaveFailed, WorkdirInUse
from block_recurrent.runs.reading import RunError
from block_recurrent.system.devices import DeviceMissing, is_out_of_memory, keep_freed_memory
from block_recurrent.system.extras import MissingPackage
from block_recurrent.system.signals import Stopped

STATUSES: dict[type[BaseException], int] = {
    ConfigError: 2,
    AttentionImpossible: 2,
    MissingPackage: 2,
    DataError: 3,
    CheckpointError: 4,
    SaveFailed: 4,
    WorkdirInUse: 4,
    RunError: 4,
    FloatingPointError: 5,
    MemoryError: 6,
    DeviceMissing: 7,
    ClusterUnreachable: processes.UNREACHABLE,
    ProcessLost: processes.LOST,
}


def reported(program: Callable[..., int]) -> Callable[..., int]:
    """Decorates a program: known failures become messages, unknown ones keep their traceback.

    The library's logs go to standard error. The process keeps freed memory, which has to be set
    before JAX starts.
    """

    @functools.wraps(program)
    def main(argv: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        keep_freed_memory()
        _show_anything()
        try:
            with _logs_shown():
                status = program([word for word in words if word != DEBUG])
        except Stopped as stopped:
            status = stopped.exit_status
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except BrokenPipeError:  # who reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except Exception as error:
            described = None if DEBUG in words else describe(error)
            if described is None and not processes.several():
                raise
            status, sentence = described or (1, traceback.format_exc())
            print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
            if processes.several():  # a normal exit would wait for the others
                processes.leave(status)
            return status
        if processes.several():
            processes.part(status)
        return status

    return main


def _show_anything() -> None:
    """Lets a console that is not UTF-8, or closed, show what it can, in place of an error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _logs_shown() -> Iterator[None]:
    logger, handler = logging.getLogger("block_recurrent"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Orbax brings a handler of its own for all libraries
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(level)
        logger.removeHandler(handler)


def describe(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the message of a known failure, else None."""
    if is_out_of_memory(error):
        return STATUSES[MemoryError], out_of_memory(error)
    error = processes.lost(error) or error
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return status, str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror or error} ({DEBUG} shows where it happened)"
    return None


def out_of_memory(error: BaseException) -> str:
    """The message, in one line, of an error that `is_out_of_memory`."""
    text = (str(error).splitlines() or [""])[0]
    return text if text.startswith("out of memory") else f"out of memory: {text}".rstrip(": ")


@contextlib.contextmanager
def knobs_named(knobs: Mapping[str, object], hint: str = "") -> Iterator[None]:
    """Within the context, a MemoryError names settings that need less memory.

    Args:
      knobs: setting that needs less memory if lowered, or set as written -> its present value.
      hint: the end of the message.

    Raises:
      MemoryError: the machine or the accelerator has too little memory.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        listed = ", ".join(f"{name} (now {value!r})" for name, value in knobs.items())
        raise MemoryError(f"{out_of_memory(error)}; what needs less: {listed}{hint}") from error


def training_knobs_named(config: ExperimentConfig) -> contextlib.AbstractContextManager[None]:
    """`knobs_named` with the settings of what trains or evaluates a model."""
    knobs = {
        "data.batch_size": config.data.batch_size,
        "a larger training.accumulate_steps": config.training.accumulate_steps,
        "data.segment_length": config.data.segment_length,
        "model.remat = 'layer'": config.model.remat,
        "model.dtype = 'bfloat16'": config.model.dtype,
    }
    return knobs_named(knobs, "; train.py --dry_run shows an estimate")
