"""A work directory: the names of its files, its lock and its configuration."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from block_recurrent.config import ConfigError
from block_recurrent.runs.errors import WorkdirInUse
from block_recurrent.system.files import hold, make_folder, reason, write_whole

LOCK, CONFIG, CHECKPOINTS = "lock", "config.gin", "checkpoints"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the file `lock` in a work directory; the file names the process meanwhile.

    The system releases it when the process ends in any way. Folders that were made for it are
    removed at the end if they are empty, so that a refused run leaves no trace.

    Raises:
      ConfigError: there can be no such directory.
      WorkdirInUse: another process holds it.
    """
    places = (workdir / LOCK, workdir, *workdir.parents)
    made = [path for path in places if not os.path.lexists(path)]
    with _hold_lock(workdir) as file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):  # up to the first folder that is not empty
                file.truncate(0)
                for path in made:
                    path.unlink() if path.name == LOCK else path.rmdir()


def _hold_lock(workdir: Path) -> BinaryIO:
    lock, owner = workdir / LOCK, "unknown"
    try:
        make_folder(workdir)
        return hold(lock)
    except BlockingIOError as error:
        with contextlib.suppress(OSError):
            owner = lock.read_text().strip() or owner
        raise WorkdirInUse(
            f"another process ({owner}) is training in {workdir}: wait for it, stop it, or "
            "choose another --workdir"
        ) from error
    except OSError as error:
        problem = "it is a file" if workdir.is_file() else f"it cannot be made ({reason(error)})"
        raise ConfigError(
            f"{workdir} cannot be a work directory, for {problem}; choose another --workdir"
        ) from error


def write_config(workdir: Path, text: str) -> None:
    """Writes the resolved configuration as gin; `check_claim` must have been called before."""
    write_whole(workdir / CONFIG, text)


def holds_run(workdir: Path) -> bool:
    """Whether a run began in this directory."""
    return (workdir / CONFIG).is_file()


def config_file(workdir: str | Path) -> Path:
    """The configuration of a run.

    Raises:
      ConfigError: `workdir` holds no run.
    """
    if not holds_run(Path(workdir)):
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG} in it")
    return Path(workdir) / CONFIG
