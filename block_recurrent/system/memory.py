"""Freed memory stays in the process, so that a step's temporaries cost no page faults.

XLA:CPU allocates the temporaries of a step anew each time. By default glibc maps large blocks from
the system and unmaps them when they are freed, so that every page of every step is a page fault: up
to a third of a step's time. A program of one's own has the same by calling `keep_freed_memory`.
"""

import ctypes
import os
import sys

SWITCH = "BLOCK_RECURRENT_KEEP_MEMORY"
# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
UNLIMITED = -1


def keep_freed_memory() -> None:
    """Memory that was freed is not given back to the system (Linux with glibc; else nothing).

    Nothing happens either where the environment says BLOCK_RECURRENT_KEEP_MEMORY=off. To be called
    before JAX computes anything: the threads it starts would have heaps of their own.
    """
    if os.environ.get(SWITCH) == "off" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, UNLIMITED)
        mallopt(ARENA_MAX, 1)
