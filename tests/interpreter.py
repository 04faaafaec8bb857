"""Python programs run by themselves, because the number of devices is set before JAX begins."""

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What one program has compiled the next ones find. JAX locks a cache only if its size is limited.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
atexit.register(COMPILED.cleanup)  # left to itself, it is removed with a warning
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def settings(devices: int = 1, **variables: str) -> dict[str, str]:
    """The environment of a program with the repository's modules and so many devices of the CPU."""
    folders = (variables.pop("PYTHONPATH", ""), ROOT)
    flags = (os.environ.get("XLA_FLAGS"), f"--xla_force_host_platform_device_count={devices}")
    return {
        **os.environ,
        **CACHE,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join(filter(None, flags)),
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, folders))),
        **variables,
    }


def python(
    code: str,
    *arguments: object,
    devices: int = 1,
    prefix: tuple[str, ...] = (),
    **variables: str,
) -> str:
    """What a program prints.

    Args:
      code: the program.
      *arguments: its `sys.argv[1:]`.
      devices: of the CPU.
      prefix: a command that runs the interpreter.
      **variables: of the environment.
    """
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        env=settings(devices, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
