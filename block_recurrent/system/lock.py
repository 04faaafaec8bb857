"""One process at a time in a work directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WorkdirInUse(RuntimeError):
    """Another process is training in the work directory."""


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir`/lock, which the system frees when the process ends, however it does.

    Meanwhile the file says which process holds it.

    Raises:
      WorkdirInUse: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            raise WorkdirInUse(
                f"another process ({owner}) is training in {workdir}: wait for it, stop it, or "
                "choose another --workdir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
