"""A run's training step compiled for devices that are not there, and what the compiler says of it.

No array is made: the step is compiled for shapes, and for where on the devices they would lie.
"""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from block_recurrent.config import DataConfig, ExperimentConfig
from block_recurrent.data import Batch
from block_recurrent.lab.compile.chips import GIB
from block_recurrent.lab.compile.flops import step_flops
from block_recurrent.lab.compile.hlo import read_program
from block_recurrent.lab.compile.hlo_costs import Costs, kernel_seconds, program_costs
from block_recurrent.lab.compile.target import COMPILER_OPTIONS, Target
from block_recurrent.model.attention import built_for
from block_recurrent.model.parameters import named_parameters
from block_recurrent.parallel.mesh import batch_sharding, make_mesh
from block_recurrent.parallel.parameters import describe_sharding
from block_recurrent.training.estimate import device_bytes
from block_recurrent.training.trainer import abstract_run_state, make_run_step

PLACES = 10
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_NEEDED = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"memory required .*?\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
)


def compile_report(config: ExperimentConfig, target: Target) -> dict[str, Any]:
    """Compiles the step of a run, its lanes shared out over all devices.

    Returns:
      Figures for JSON. A step that does not fit has `fits` False and `overflow`, a sentence; where
      the compiler gave up for it, there are no more figures than what it needs. What a compiler
      does not say is None.

    Raises:
      ConfigError: the mesh does not divide the batch or some parameters, or leaves devices over.
    """
    mesh = make_mesh(config.mesh, config.data.batch_size, target.devices, exact=True)
    begin = time.perf_counter()
    with built_for({"cuda": "gpu"}.get(target.platform, target.platform)):
        state = abstract_run_state(config, mesh)
        step: Any = make_run_step(config, state)
        lowered = step.lower(state, abstract_batch(config.data, mesh))
    figures = _expected(config, target) | {
        "mesh": dict(mesh.shape),
        "shared_parameters": describe_sharding(mesh.shape, named_parameters(state.model)),
        "state_bytes": device_bytes(state[:2]),
    }
    middle = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=COMPILER_OPTIONS[target.platform])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, reason = needed_bytes(str(error)), str(error).splitlines()[0]
        return figures | _fit(target, needed, needed is None, reason)
    seconds = {"lower_seconds": middle - begin, "compile_seconds": time.perf_counter() - middle}
    memory = compiled.memory_analysis()
    program = read_program(compiled.as_text())
    costs = program_costs(program, target.chip)
    figures |= seconds | _costs(costs, target, figures["flops"])
    figures["unknown_loops"] = program.unknown_loops
    return figures | _fit(target, memory.peak_memory_in_bytes, False, "")


def abstract_batch(data: DataConfig, mesh: Mesh) -> Batch:
    """Shapes, dtypes and places of a batch."""
    sharding, shape = batch_sharding(mesh), (data.batch_size, data.segment_length)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tokens, mask = array(shape, jnp.int32), array(shape, jnp.bool_)
    return Batch(tokens, tokens, mask, array(shape[:1], jnp.bool_))


def needed_bytes(message: str) -> int | None:
    """How much of a chip's memory a step needs, from the compiler's error that it has not enough.

    None where it is about something else, such as the memory of a kernel.
    """
    found = next(filter(None, (pattern.search(message) for pattern in _NEEDED)), None)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


def _expected(config: ExperimentConfig, target: Target) -> dict[str, Any]:
    """What is known before anything is compiled, and None for what may never be."""
    data, chip = config.data, target.chip
    unknown = ("peak_bytes", "cycles", "seconds", "share_of_peak", "collectives")
    return {
        "topology": target.topology,
        "chip": chip.name,
        "devices": len(target.devices),
        "jax": jax.__version__,
        "tokens": data.batch_size * data.segment_length,
        "flops": step_flops(config),
        "peak_flops": chip.peak_flops * len(target.devices),
        "memory_bytes": chip.memory_bytes,
        "fits": False,
        **dict.fromkeys(unknown),
    }


def _fit(target: Target, needed: int | None, overflow: bool, reason: str) -> dict[str, Any]:
    """Whether the step fits; `overflow` says that it does not for another reason than memory."""
    available = target.chip.memory_bytes
    fits = not overflow and needed is not None and needed <= available
    figures: dict[str, Any] = {"fits": fits, "peak_bytes": needed}
    if fits:
        return figures
    if needed is not None:
        reason = (
            f"a step needs {needed / 1e9:.2f} GB of each {target.chip.name} of "
            f"{target.topology}, which has {available / 1e9:.2f} GB"
        )
    return figures | {"overflow": f"out of memory: {reason}"}


def _costs(costs: Costs, target: Target, flops: int) -> dict[str, Any]:
    """The costs as JSON has them; cycles and what follows from them are None without a clock."""
    chip, outside = target.chip, costs.cycles
    cycles = None if outside is None else outside + round(costs.kernel_cycles)
    seconds = None if cycles is None or chip.clock is None else cycles / chip.clock
    peak = chip.peak_flops * len(target.devices)
    places = [
        {"place": place, "pass": direction, "cycles": round(spent), "share": spent / (cycles or 1)}
        for (place, direction), spent in list(costs.places.items())[:PLACES]
    ]
    return {
        "cycles": cycles,
        "cycles_outside_kernels": outside,
        "cycles_of_kernels": None if outside is None else round(costs.kernel_cycles),
        "seconds": seconds,
        "share_of_peak": None if seconds is None else flops / (peak * seconds),
        "collectives": {
            kind: {"count": found.number, "bytes": found.bytes}
            for kind, found in costs.collectives.items()
        },
        "places": places,
        "kernels": [
            kernel._asdict() | {"seconds": kernel_seconds(kernel, chip)}
            for kernel in costs.kernels
            if chip.clock is not None
        ],
        "unknown_kernels": costs.unknown_kernels,
    }
