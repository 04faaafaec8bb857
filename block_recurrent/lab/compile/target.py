"""Devices that are not there: what a compiler needs to know of a topology to compile for it."""

import math
import os
import re
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from block_recurrent.config import ConfigError
from block_recurrent.lab.compile.chips import CHIPS, Chip
from block_recurrent.system.text import did_you_mean

EXAMPLES = "v5e:2x2, v5e:4x8, v5p:2x2x1, h100:1 or h100:8"
# Without these the TPU's runtime looks for its own machine, and only one process can use it.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# A GPU's compiler would time kernels; there is no GPU to time them on.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}
_PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")}


class Target(NamedTuple):
    """What a step is compiled for.

    Attributes:
      topology: its name.
      chip: one device: a chip, or a core if the runtime makes a device of each core.
      devices: for shardings; no array can be put on them.
    """

    topology: str
    chip: Chip
    devices: list[Any]


def make_target(topology: str) -> Target:
    """The devices of a topology: a chip, a colon, and the number of chips along each axis.

    From then on JAX runs on the CPU and does not look for a TPU, so call this before any
    computation.

    Raises:
      ConfigError: there is no such topology, or the compiler for it is not installed.
    """
    name, _, shape = topology.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or name not in CHIPS:
        hint = f"no chip is called {name!r}{did_you_mean(name, CHIPS)}; " * (name not in CHIPS)
        raise ConfigError(
            f"--topology={topology}: {hint}write a chip and how many, such as {EXAMPLES}; "
            f"the chips: {', '.join(CHIPS)}"
        )
    chip, sizes = CHIPS[name], [int(size) for size in shape.split("x")]
    if not any(map(is_installed, _PLUGINS[chip.platform])):
        extra = {"tpu": "tpu", "cuda": "cuda13"}[chip.platform]
        raise ConfigError(
            f"--topology={topology}: the compiler for it is not installed; pip install "
            f"'jax[{extra}]', or install this package with the extra '{chip.platform}'"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        devices = list(_describe(topology, chip, sizes).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(
            f"--topology={topology}: the compiler does not know it ({reason}); "
            f"known are such as {EXAMPLES}"
        ) from error
    return Target(topology, chip.part(len(devices) // math.prod(sizes)), devices)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported, but the one around it is."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _describe(topology: str, chip: Chip, sizes: list[int]) -> Any:
    """JAX's description; `sizes` of GPUs are devices, or hosts and the devices of each."""
    if chip.platform == "tpu":
        options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
        return topologies.get_topology_desc(topology, "tpu", **options)
    if len(sizes) > 2:
        raise ValueError("write devices, or hosts x devices of a host")
    shape = "x".join(map(str, [1] * (3 - len(sizes)) + sizes))
    return topologies.get_topology_desc(
        topology, "cuda", target_config=chip.description, topology=shape
    )
