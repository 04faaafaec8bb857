"""Whether the accelerator that was asked for is there."""

import os

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
