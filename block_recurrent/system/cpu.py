"""What a program sets before JAX starts, so that a CPU computes as fast as it can.

A program of one's own has it by calling `prepare_cpu` before its first computation.
"""

import contextlib
import ctypes
import os
import sys

import jax

SWITCH = "BLOCK_RECURRENT_CPU_SETUP"
MOST_DEVICES = 16
# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
UNLIMITED = -1


def prepare_cpu() -> None:
    """Keeps freed memory in the process, and makes every core a device of its own.

    Nothing happens where the environment says BLOCK_RECURRENT_CPU_SETUP=off. To be called before
    JAX computes anything; later calls change little.
    """
    if os.environ.get(SWITCH) != "off":
        keep_freed_memory()
        share_out_cores()


def keep_freed_memory() -> None:
    """Memory that was freed is not given back to the system (Linux with glibc; else nothing).

    XLA:CPU allocates the temporaries of a step anew each time. By default glibc maps large blocks
    from the system and unmaps them when they are freed, so that every page of every step is a page
    fault: up to a third of a step's time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, UNLIMITED)
        mallopt(ARENA_MAX, 1)


def share_out_cores() -> None:
    """One CPU device a core, 16 at most, over which lanes are shared out.

    XLA:CPU runs many operations of one device on one core only, the batches of small products of
    attention among them. What the user has set about devices stays as it is.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # JAX has begun already
        jax.config.update("jax_num_cpu_devices", min(number_of_cores(), MOST_DEVICES))


def number_of_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
