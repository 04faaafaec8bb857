"""The machine: whether its devices exist, their memory, and settings that make steps faster.

XLA:CPU allocates the temporaries of a step anew each time. By default glibc maps large blocks from
the system and unmaps them when they are freed. Every page of every step is then a page fault, which
costs up to a third of a step's time. A program of your own avoids this with `keep_freed_memory`.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

SWITCH = "BLOCK_RECURRENT_KEEP_MEMORY"
# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
UNLIMITED = -1
# TPUs, by JAX's names, whose compiler makes faster steps of larger tiles: those that fit 32 MiB of
# the fast memory in place of 16. Compilation takes up to twice as long. A v6e gained nothing.
LARGE_TILES = ("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p")
_TILES = "xla_tpu_scoped_vmem_limit_kib"


class DeviceMissing(RuntimeError):
    """JAX has no device of the kind that was asked for."""


def check_device() -> None:
    """Looks for the devices, before anything changes or takes long.

    Raises:
      DeviceMissing: JAX cannot find those asked for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # Without the package for an accelerator, an assertion inside JAX fails.
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines() or ["JAX is installed without what it needs"]
        raise DeviceMissing(
            f"the device asked for (JAX_PLATFORMS={asked!r}) is not there ({reason[0]}); unset "
            "JAX_PLATFORMS to use the devices that are there"
        ) from error


def device_memory(devices: Sequence[Any]) -> float:
    """The bytes that JAX may use of each device; of CPUs, their share of the machine's."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if all(limits):
        return min(limits)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the accelerator has too little memory."""
    code = getattr(error, "error_code_string", "")
    return isinstance(error, MemoryError) or code == "RESOURCE_EXHAUSTED"


def compiler_options(platform: str, kind: str) -> dict[str, int]:
    """XLA's options for a training step on such a device, "TPU v5" for example.

    What `LIBTPU_INIT_ARGS` says of an option stands.
    """
    if platform != "tpu" or kind not in LARGE_TILES:
        return {}
    return {} if _TILES in os.environ.get("LIBTPU_INIT_ARGS", "") else {_TILES: 32_768}


def keep_freed_memory() -> None:
    """Keeps freed memory in the process (Linux with glibc only).

    BLOCK_RECURRENT_KEEP_MEMORY=off in the environment turns this off. Call it before JAX computes
    anything, because it does not reach the heaps of threads that already run.
    """
    if os.environ.get(SWITCH) == "off" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, UNLIMITED)
        mallopt(ARENA_MAX, 1)
