"""The devices that are there: the accelerator that was asked for, and cores of a CPU."""

import os
import subprocess
import sys

import jax


class DeviceMissing(RuntimeError):
    """JAX has no device of the kind that was asked for."""


def use_one_core() -> None:
    """Makes XLA compute on one core of a CPU, before JAX begins: small models run best so.

    Other devices are used as ever.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def check_device() -> None:
    """Looks for the devices, before anything is changed or takes long.

    Raises:
      DeviceMissing: JAX cannot find those asked for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # Where the package for an accelerator is not installed, JAX fails an assertion of its own.
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines() or ["JAX is installed without what it needs"]
        raise DeviceMissing(
            f"the device asked for (JAX_PLATFORMS={asked!r}) is not there ({reason[0]}); unset "
            "JAX_PLATFORMS to take what there is"
        ) from error


def count_cores() -> int:
    """CPU cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def default_backend() -> str:
    """The kind of device that JAX takes, such as "cpu", asked in a process of its own.

    An accelerator that this process took would not be there for others.
    """
    code = "import jax; print(jax.default_backend())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return asked.stdout.strip()
