"""Accelerators that a step can be compiled for, with published figures of one chip."""

from typing import NamedTuple

GIB = 2**30


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
    """

    name: str
    platform: str
    peak_flops: float
    memory_bytes: int
    bandwidth: float
    clock: float = 0
    cores: int = 1
    description: str = ""

    @property
    def vector_rate(self) -> float:
        """Elementwise operations a second of a TPU: four units of 8 x 128 lanes in every core."""
        return 4 * 8 * 128 * self.cores * self.clock

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


_GPU_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {gigahertz}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_of_block}
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


def _gpu(name: str, peak: float, memory: int, bandwidth: float, **changes: float) -> Chip:
    """A GPU; `cache` is its L2 cache in MiB, `shared` the memory of a multiprocessor in KiB."""
    unit = {"major": 9, "cores": 132, "units": 128, "gigahertz": 1.98, "cache": 50, "shared": 228}
    unit |= changes
    unit |= {
        "cache": unit["cache"] * 2**20,
        "shared": unit["shared"] * 2**10,
        "shared_of_block": (unit["shared"] - 1) * 2**10,
    }
    description = _GPU_DESCRIPTION.format(
        name=name, memory=memory, bandwidth=int(bandwidth), **unit
    )
    return Chip(name, "cuda", peak, memory, bandwidth, description=description)


def _tpu(name: str, peak: float, gib: float, bandwidth: float, clock: float, cores: int) -> Chip:
    return Chip(name, "tpu", peak, int(gib * GIB), bandwidth, clock, cores)


# The memory of a TPU is the part of the chip's 16 GiB and so on that a program can use.
CHIPS = {
    "v2": _tpu("TPU v2", 45.9e12, 14.96, 0.7e12, 0.7e9, 2),
    "v3": _tpu("TPU v3", 123e12, 30.96, 0.9e12, 0.94e9, 2),
    "v4": _tpu("TPU v4", 275e12, 30.5, 1.23e12, 1.05e9, 2),
    "v5e": _tpu("TPU v5e", 197e12, 15.75, 0.82e12, 1.5e9, 1),
    "v5p": _tpu("TPU v5p", 459e12, 95.74, 2.77e12, 1.75e9, 2),
    "v6e": _tpu("TPU v6e", 918e12, 31.25, 1.64e12, 1.75e9, 1),
    "tpu7x": _tpu("TPU7x", 2307e12, 189.5, 7.38e12, 2.2e9, 2),
    "a100": _gpu(
        "NVIDIA A100-SXM4-80GB", 312e12, 84_987_740_160, 2.04e12,
        major=8, cores=108, units=64, gigahertz=1.41, cache=40, shared=164,
    ),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989e12, 84_942_979_072, 3.35e12),
    "h200": _gpu("NVIDIA H200", 989e12, 150_000_000_000, 4.8e12),
}  # fmt: skip
