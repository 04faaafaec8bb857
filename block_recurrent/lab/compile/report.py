"""A run's training step compiled for devices that are not there: its figures, and their text.

No array is made: the step is compiled for shapes and shardings.
"""

import functools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from block_recurrent.command_line.failures import is_out_of_memory, out_of_memory
from block_recurrent.config import DataConfig, ExperimentConfig
from block_recurrent.data import Batch
from block_recurrent.lab.compile.costs import VECTOR_OPERATIONS, program_costs
from block_recurrent.lab.compile.flops import step_flops
from block_recurrent.lab.compile.target import COMPILER_OPTIONS, Target
from block_recurrent.model.attention import built_for
from block_recurrent.model.parameters import named_parameters
from block_recurrent.parallel.mesh import batch_sharding, make_mesh
from block_recurrent.parallel.parameters import describe_sharding
from block_recurrent.system.files import write_whole
from block_recurrent.training.estimate import device_bytes
from block_recurrent.training.trainer import abstract_run_state, make_run_step

_log = logging.getLogger(__name__)


def report(config: ExperimentConfig, target: Target, json_file: Path | None = None) -> None:
    """Compiles a run's step, prints its figures, and writes them as JSON.

    Raises:
      ConfigError: the batch or the parameters do not divide by the mesh, or it leaves devices over.
      MemoryError: the step does not fit; the figures are printed and written before.
    """
    _log.info("compiling for %s ...", target.topology)
    figures = compile_step(config, target)
    if json_file is not None:
        write_whole(json_file, json.dumps(figures, indent=2) + "\n")
    if "compile_seconds" in figures:
        print(describe(figures), end="")
    if not figures["fits"]:
        raise MemoryError(
            f"{figures['overflow']}; {figures['state_bytes'] / 1e9:.2f} GB of every device are "
            "parameters and optimizer state: mesh.fsdp shards them, more devices the rest"
        )


def compile_step(config: ExperimentConfig, target: Target) -> dict[str, Any]:
    """Compiles the step of a run, with its batch sharded over all devices.

    Returns:
      Figures for JSON; None where the compiler does not say. If the step does not fit, `fits` is
      False and `overflow` says why; if the compiler found so, the figures of costs are missing.

    Raises:
      ConfigError: the batch or the parameters do not divide by the mesh, or it leaves devices over.
    """
    mesh = make_mesh(config.mesh, config.data.batch_size, target.devices, exact=True)
    chip, begin = target.chip, time.perf_counter()
    with built_for("gpu" if chip.platform == "cuda" else chip.platform):
        state = abstract_run_state(config, mesh)
        step: Any = make_run_step(config, state)
        lowered = step.lower(state, _abstract_batch(config.data, mesh))
    figures: dict[str, Any] = {
        "topology": target.topology,
        "chip": chip.name,
        "devices": len(target.devices),
        "jax": jax.__version__,
        "tokens": config.data.batch_size * config.data.segment_length,
        "flops": step_flops(config),
        "peak_flops": chip.peak_flops * len(target.devices),
        "memory_bytes": chip.memory_bytes,
        **dict.fromkeys(("peak_bytes", "cycles", "seconds", "share_of_peak", "collectives")),
        "mesh": dict(mesh.shape),
        "shared_parameters": describe_sharding(mesh.shape, named_parameters(state.model)),
        "state_bytes": device_bytes(state[:2]),
    }
    middle = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=COMPILER_OPTIONS[chip.platform])
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return figures | {"fits": False, "overflow": out_of_memory(error)}
    figures |= {"lower_seconds": middle - begin, "compile_seconds": time.perf_counter() - middle}
    return figures | _costs_of(compiled, target, figures)


def _costs_of(
    compiled: jax.stages.Compiled, target: Target, known: dict[str, Any]
) -> dict[str, Any]:
    """The figures that the compiler gives, beside those that are known without it."""
    chip = target.chip
    figures = program_costs(compiled.as_text() or "", chip)
    if figures["cycles_outside_kernels"] is not None and chip.clock:
        figures["cycles"] = figures["cycles_outside_kernels"] + figures["cycles_of_kernels"]
        figures["seconds"] = figures["cycles"] / chip.clock
        possible = known["peak_flops"] * figures["seconds"]
        figures["share_of_peak"] = known["flops"] / possible
    memory: Any = compiled.memory_analysis()
    needed, available = memory.peak_memory_in_bytes, chip.memory_bytes
    figures |= {"fits": needed <= available, "peak_bytes": needed}
    if needed > available:
        figures["overflow"] = (
            f"out of memory: a step needs {needed / 1e9:.2f} GB of each {chip.name} of "
            f"{target.topology}, which has {available / 1e9:.2f} GB"
        )
    return figures


def _abstract_batch(data: DataConfig, mesh: Mesh) -> Batch:
    shape = (data.batch_size, data.segment_length)
    shape_of: Any = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    tokens, mask = shape_of(shape, jnp.int32), shape_of(shape, jnp.bool_)
    return Batch(tokens, tokens, mask, shape_of(shape[:1], jnp.bool_))


def describe(figures: dict[str, Any]) -> str:
    """The figures of a step that was compiled, as text for a screen."""
    lines = [*_sizes(figures), *_time(figures), *_costs(figures)]
    return "".join(f"{line}\n" for line in lines)


def _sizes(figures: dict[str, Any]) -> Iterator[str]:
    peak, memory, state = (
        figures[name] / 1e9 for name in ("peak_bytes", "memory_bytes", "state_bytes")
    )
    flops, tokens = figures["flops"], figures["tokens"]
    axes = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    fits = "fits" if figures["fits"] else "does not fit"
    yield f"{figures['topology']}: {figures['devices']} x {figures['chip']}, jax {figures['jax']}"
    yield f"mesh                  {axes}"
    yield f"compilation           {figures['compile_seconds']:,.0f} s"
    yield f"memory of a device    {peak:.2f} GB at most, of {memory:.2f}: {fits}"
    yield f"                      {state:.2f} GB of that are parameters and the optimizer's"
    if figures["shared_parameters"]:
        yield "parameters along the axes of the mesh"
    for where, names in figures["shared_parameters"].items():
        yield f"  {where:20}{names}"
    each = f"{flops / tokens / 1e9:.3f} GFLOP a token"
    yield f"useful operations     {flops / 1e12:,.4g} TFLOP a step of {tokens:,} tokens, {each}"


def _time(figures: dict[str, Any]) -> Iterator[str]:
    if figures["cycles"] is None:
        yield "cycles                the compiler for this chip estimates none"
        return
    outside, kernels = figures["cycles_outside_kernels"], figures["kernels"]
    yield f"cycles, estimated     {outside / 1e6:,.0f} M outside kernels"
    if kernels:
        inside = figures["cycles_of_kernels"] / 1e6
        yield f"{'':22}{inside:,.0f} M in kernels, at least; see below"
        yield f"{'':22}{figures['cycles'] / 1e6:,.0f} M together"
    seconds, peak = figures["seconds"], figures["peak_flops"] / 1e12
    speed = figures["tokens"] / seconds
    yield f"time of a step        {seconds:.3f} s by that estimate, {speed:,.0f} tokens/s"
    yield f"share of peak         {figures['share_of_peak']:.1%} of {peak:,.0f} TFLOP/s"
    if kernels:
        yield f"kernels, least ms by unit ({VECTOR_OPERATIONS} vector operations an exponential)"
    for kernel in kernels:
        units = (f"{unit} {value * 1e3:,.1f}" for unit, value in kernel["seconds"].items())
        yield f"  {kernel['name']}, {kernel['calls']:,} calls: {', '.join(units)}"


def _costs(figures: dict[str, Any]) -> Iterator[str]:
    if not figures["collectives"]:
        yield "collectives           none"
    for kind, found in figures["collectives"].items():
        yield f"{kind:20}  {found['count']:,} a step, {found['bytes'] / 1e9:,.3f} GB"
    if figures["places"]:
        yield "most cycles, by the line of block_recurrent/ that they come from"
    for found in figures["places"]:
        spent = f"{found['cycles'] / 1e6:9,.1f} M {found['share']:6.1%}"
        yield f"  {spent}  {found['pass']:14}  {found['place']}"
    for name in figures["unknown_loops"]:
        yield f"loop {name}: the program does not show its trip count, so it counts once"
    for name in figures["unknown_kernels"]:
        yield f"kernel {name}: it has no cost_estimate, so it counts nothing"
