"""Devices that are not there: what a compiler needs to know of a topology to compile for it."""

import math
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from block_recurrent.config import ConfigError
from block_recurrent.lab.compile.chips import CHIPS, Chip
from block_recurrent.system.text import did_you_mean

EXAMPLES = "v5e:2x2, v5e:4x8, v5p:2x2x1, h100:1 or h100:8"
# Without these the TPU's runtime looks for its own machine, and lets one process at a time have it.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# A GPU's compiler would try kernels out; there is no GPU to try them on.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}
# What a model calls the platforms that it is built for.
MODEL_PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}
_PLUGINS = {
    "tpu": ("libtpu",),
    "cuda": ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
}


class Target(NamedTuple):
    """What a step is compiled for.

    Attributes:
      topology: its name.
      chip: one device: a chip, or, where the runtime makes several of one, its part.
      devices: for shardings; nothing can be put on them.
    """

    topology: str
    chip: Chip
    devices: list[Any]

    @property
    def platform(self) -> str:
        """ "tpu" or "cuda"."""
        return self.chip.platform


def make_target(topology: str) -> Target:
    """The devices of a topology: a chip, a colon, and how many there are along each axis.

    From then on JAX runs on the CPU, whatever there is, and no TPU is looked for; so this is to be
    called before anything is computed.

    Raises:
      ConfigError: there is no such topology, or the compiler for it is not installed.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if found is None:
        raise ConfigError(
            f"--topology={topology}: write a chip and how many, such as {EXAMPLES}; "
            f"the chips: {', '.join(CHIPS)}"
        )
    name, sizes = found[1], [int(size) for size in found[2].split("x")]
    if name not in CHIPS:
        hint = did_you_mean(name, CHIPS)
        raise ConfigError(
            f"--topology={topology}: no chip is called {name!r}{hint}; there are {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    _check_installed(topology, chip.platform)
    _prepare()
    devices = _described(topology, lambda: _DESCRIPTIONS[chip.platform](topology, chip, sizes))
    return Target(topology, chip.part(len(devices) // math.prod(sizes)), devices)


def _prepare() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def _check_installed(topology: str, platform: str) -> None:
    if not any(_is_installed(plugin) for plugin in _PLUGINS[platform]):
        raise ConfigError(
            f"--topology={topology}: the compiler for it is not installed; "
            f"pip install 'jax[{'tpu' if platform == 'tpu' else 'cuda13'}]', "
            f"or install this package with the extra '{platform}'"
        )


def _is_installed(plugin: str) -> bool:
    try:
        return find_spec(plugin) is not None
    except ModuleNotFoundError:
        return False


def _described(topology: str, describe: Callable[[], Any]) -> list[Any]:
    try:
        return list(describe().devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(
            f"--topology={topology}: the compiler does not know it ({reason}); "
            f"known are such as {EXAMPLES}"
        ) from error


def _tpu(topology: str, chip: Chip, sizes: list[int]) -> Any:
    del chip
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    return topologies.get_topology_desc(topology, "tpu", **options)


def _cuda(topology: str, chip: Chip, sizes: list[int]) -> Any:
    """`sizes` are devices, or hosts and the devices of each."""
    if len(sizes) > 2:
        raise ValueError("write devices, or hosts x devices of a host")
    shape = "x".join(map(str, [1] * (3 - len(sizes)) + sizes))
    return topologies.get_topology_desc(
        topology, "cuda", target_config=chip.description, topology=shape
    )


_DESCRIPTIONS = {"tpu": _tpu, "cuda": _cuda}
