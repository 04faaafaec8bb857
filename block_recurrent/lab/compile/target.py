"""Accelerators that a step can be compiled for: chips with published figures, and topologies."""

import math
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from block_recurrent.config import ConfigError
from block_recurrent.lab.compile.schedules import FLAGS
from block_recurrent.system.text import did_you_mean

EXAMPLES = "v5e:2x2, v5e:4x8, v5p:2x2x1, h100:1 or h100:8"
# Without these the TPU's runtime looks for its own machine, and only one process can use it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# A GPU's compiler would time kernels; there is no GPU to time them on.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}
_PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")}


class Chip(NamedTuple):
    """What a chip can do.

    Attributes:
      name: its usual name.
      platform: "tpu" or "cuda".
      peak_flops: bfloat16 operations a second of its matrix units, without sparsity.
      memory_bytes: what the compiler lets a program use.
      bandwidth: bytes a second to and from that memory.
      clock: cycles a second, in which a TPU's compiler counts; 0 for a GPU.
      cores: TensorCores; the clock and the cycles are those of each of them.
      description: of a GPU, the text by which the compiler knows it.
      capability: its compute capability, of an NVIDIA GPU.
    """

    name: str
    platform: str
    peak_flops: float
    memory_bytes: int
    bandwidth: float
    clock: float = 0
    cores: int = 1
    description: str = ""
    capability: str = ""

    def part(self, devices: int) -> "Chip":
        """One device, if the runtime makes so many of a chip: the chip, or one core of it."""
        if devices == 1:
            return self
        return self._replace(
            name=f"core of a {self.name}",
            peak_flops=self.peak_flops / devices,
            memory_bytes=self.memory_bytes // devices,
            bandwidth=self.bandwidth / devices,
            cores=self.cores // devices,
        )


def _gpu(
    name: str,
    peak: float,
    memory: int,
    bandwidth: float,
    *,
    major: int = 9,
    cores: int = 132,
    units: int = 128,
    gigahertz: float = 1.98,
    cache: int = 50,
    shared: int = 228,
) -> Chip:
    """A GPU; `cache` is its L2 cache in MiB, `shared` the memory of a multiprocessor in KiB."""
    description = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {gigahertz}
  device_memory_size: {memory}
  memory_bandwidth: {int(bandwidth)}
  l2_cache_size: {cache * 2**20}
  shared_memory_per_core: {shared * 2**10}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {(shared - 1) * 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
    return Chip(
        name, "cuda", peak, memory, bandwidth, description=description, capability=f"{major}.0"
    )


# The memory of a TPU is the part of the chip's 16 GiB and so on that a program can use.
CHIPS = {
    "v2": Chip("TPU v2", "tpu", 45.9e12, int(14.96 * 2**30), 0.7e12, 0.7e9, 2),
    "v3": Chip("TPU v3", "tpu", 123e12, int(30.96 * 2**30), 0.9e12, 0.94e9, 2),
    "v4": Chip("TPU v4", "tpu", 275e12, int(30.5 * 2**30), 1.23e12, 1.05e9, 2),
    "v5e": Chip("TPU v5e", "tpu", 197e12, int(15.75 * 2**30), 0.82e12, 1.5e9, 1),
    "v5p": Chip("TPU v5p", "tpu", 459e12, int(95.74 * 2**30), 2.77e12, 1.75e9, 2),
    "v6e": Chip("TPU v6e", "tpu", 918e12, int(31.25 * 2**30), 1.64e12, 1.75e9, 1),
    "tpu7x": Chip("TPU7x", "tpu", 2307e12, int(189.5 * 2**30), 7.38e12, 2.2e9, 2),
    "a100": _gpu(
        "NVIDIA A100-SXM4-80GB", 312e12, 84_987_740_160, 2.04e12,
        major=8, cores=108, units=64, gigahertz=1.41, cache=40, shared=164,
    ),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989e12, 84_942_979_072, 3.35e12),
    "h200": _gpu("NVIDIA H200", 989e12, 150_000_000_000, 4.8e12),
}  # fmt: skip


class Target(NamedTuple):
    """What a step is compiled for.

    Attributes:
      topology: its name.
      chip: one device: a chip, or a core if the runtime makes a device of each core.
      devices: for shardings; no array can be put on them.
      schedules: the folder into which a TPU's compiler writes what instructions it makes.
    """

    topology: str
    chip: Chip
    devices: list[Any]
    schedules: Path | None = None


def make_target(topology: str, schedules: Path | None = None) -> Target:
    """The devices of a topology: a chip, a colon, and the number of chips along each axis.

    A TPU's compiler writes into the folder `schedules` what instructions it makes.

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
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if schedules:
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {FLAGS.format(folder=schedules)}".strip()
    jax.config.update("jax_platforms", "cpu")
    try:
        if chip.platform == "tpu":
            options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
            described = topologies.get_topology_desc(topology, "tpu", **options)
        elif len(sizes) > 2:
            raise ValueError("write devices, or hosts x devices of a host")
        else:
            options = {
                "target_config": chip.description,
                "topology": f"{'1x' * (3 - len(sizes))}{shape}",
            }
            described = topologies.get_topology_desc(topology, "cuda", **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(
            f"--topology={topology}: the compiler does not know it ({reason}); "
            f"known are such as {EXAMPLES}"
        ) from error
    devices: list[Any] = list(described.devices)
    chip = chip.part(len(devices) // math.prod(sizes))
    return Target(topology, chip, devices, schedules)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; only the package around it is imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
