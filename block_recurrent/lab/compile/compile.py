"""Compiles a run's training step for accelerators that are not there, and shows its costs.

    block-recurrent compile --topology=v5e:2x2 --gin_file=table1/pg19_bytes/rec_fixed_skip.gin
    block-recurrent compile --topology=h100:8 --gin_file=scaling/350m_rec.gin --json=350m.json

It prints the memory of a device, the compiler's estimate of cycles or, for a GPU, a bound of the
time, the share of the chips' peak, the collectives, and the source lines that cost most. The batch
is sharded over all devices. Status 6 means that the step does not fit. It needs Linux and the
compiler, jax[tpu] or jax[cuda13], but no accelerator, no data, and a few minutes for a model of the
paper's size.

JAX runs on the CPU, whatever JAX_PLATFORMS says, and does not look for a TPU. These variables are
set unless they already are: TPU_SKIP_MDS_QUERY, TPU_WORKER_HOSTNAMES, TPU_ACCELERATOR_TYPE,
TPU_MIN_LOG_LEVEL, and ALLOW_MULTIPLE_LIBTPU_LOAD, without which only one process at a time can use
the TPU's compiler. LIBTPU_INIT_ARGS is extended, so that it writes what instructions it makes into
a temporary folder: 0.3 GB for a model of the paper's size.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from block_recurrent.command_line.failures import (
    out_of_memory,
    reported,
    training_knobs_named,
)
from block_recurrent.command_line.options import file_to_write
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.lab.compile.costs import program_costs
from block_recurrent.lab.compile.flops import step_flops
from block_recurrent.lab.compile.schedules import read_cycles
from block_recurrent.lab.compile.target import COMPILER_OPTIONS, EXAMPLES, Target, make_target
from block_recurrent.model.attention import built_for
from block_recurrent.model.parameters import named_parameters
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.parallel.parameters import describe_sharding
from block_recurrent.system.devices import is_out_of_memory
from block_recurrent.system.files import write_whole
from block_recurrent.training.estimate import device_bytes
from block_recurrent.training.remat import AUTO, SHARE, choices_for, with_remat
from block_recurrent.training.trainer import abstract_run_state, lower_step

_log = logging.getLogger(__name__)


def compile_step(config: ExperimentConfig, target: Target) -> dict[str, Any]:
    """Compiles the step of a run, with its batch sharded over all devices; no array is made.

    With `model.remat = "auto"` it is the step that would be chosen on these devices.

    Returns:
      Figures for JSON; None where the compiler does not say. If the step does not fit, `fits` is
      False and `overflow` says why; if the compiler found so, the figures of costs are missing.

    Raises:
      ConfigError: the batch or the parameters do not divide by the mesh, or it leaves devices over.
    """
    remat, figures = config.model.remat, {}
    platform = _platform(target)
    kind = target.chip.capability or target.devices[0].device_kind
    with built_for(platform, kind):
        for choice in choices_for(config, platform) if remat == AUTO else (remat,):
            figures = _compile_step(with_remat(config, choice), target)
            if figures["fits"] and figures["peak_bytes"] <= SHARE * figures["memory_bytes"]:
                break
    return figures


def _platform(target: Target) -> str:
    """The platform of the chips, as JAX's devices name it."""
    return "gpu" if target.chip.platform == "cuda" else target.chip.platform


def _compile_step(config: ExperimentConfig, target: Target) -> dict[str, Any]:
    mesh = make_mesh(config.mesh, config.microbatch_size, target.devices, exact=True)
    chip, begin = target.chip, time.perf_counter()
    lowered, state = lower_step(config, mesh), abstract_run_state(config, mesh)
    figures: dict[str, Any] = {
        "topology": target.topology,
        "chip": chip.name,
        "devices": len(target.devices),
        "jax": jax.__version__,
        "remat": config.model.remat,
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
    kernel_cycles = read_cycles(target.schedules) if target.schedules else {}
    figures = program_costs(compiled.as_text() or "", chip, kernel_cycles)
    if figures["seconds"]:
        figures["share_of_peak"] = known["flops"] / (known["peak_flops"] * figures["seconds"])
    memory: Any = compiled.memory_analysis()
    needed, available = memory.peak_memory_in_bytes, chip.memory_bytes
    figures |= {"fits": needed <= available, "peak_bytes": needed}
    if needed > available:
        figures["overflow"] = (
            f"out of memory: a step needs {needed / 1e9:.2f} GB of each {chip.name} of "
            f"{target.topology}, which has {available / 1e9:.2f} GB"
        )
    return figures


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
    yield f"model.remat           {figures['remat']}"
    yield f"memory of a device    {peak:.2f} GB at most, of {memory:.2f}: {fits}"
    yield f"                      {state:.2f} GB of that are parameters and the optimizer's"
    if figures["shared_parameters"]:
        yield "parameters along the axes of the mesh"
    for where, names in figures["shared_parameters"].items():
        yield f"  {where:20}{names}"
    each = f"{flops / tokens / 1e9:.3f} GFLOP a token"
    yield f"useful operations     {flops / 1e12:,.4g} TFLOP a step of {tokens:,} tokens, {each}"


def _time(figures: dict[str, Any]) -> Iterator[str]:
    if figures["seconds"] is None:
        yield "time                  the compiler for this chip estimates none"
        return
    if "launches" in figures:
        launches, moved = figures["launches"], figures["moved_bytes"] / 1e9
        yield f"kernels               {launches:,} a step, {moved:,.0f} GB to and from memory"
        yield f"{'':22}{figures['product_flops'] / 1e12:,.4g} TFLOP of matrix products"
        bound = "at least: products at the peak, or memory at its bandwidth"
    else:
        outside, inside, together = (
            f"{figures[name] / 1e6:,.0f} M"
            for name in ("cycles_outside_kernels", "cycles_of_kernels", "cycles")
        )
        yield f"cycles, estimated     {outside} outside kernels"
        if figures["kernels"]:
            yield f"{'':22}{inside} in kernels; see below"
            yield f"{'':22}{together} together"
        bound = "by that estimate"
    seconds, peak = figures["seconds"], figures["peak_flops"] / 1e12
    speed = figures["tokens"] / seconds
    yield f"time of a step        {seconds:.3f} s {bound}, {speed:,.0f} tokens/s"
    yield f"share of peak         {figures['share_of_peak']:.1%} of {peak:,.0f} TFLOP/s"
    if kernels := figures.get("kernels"):
        yield "kernels, ms of their instructions, and of their bytes"
        for kernel in kernels:
            parts = (f"{part} {value * 1e3:,.1f}" for part, value in kernel["seconds"].items())
            yield f"  {kernel['name']}, {kernel['calls']:,} calls: {', '.join(parts)}"


def _costs(figures: dict[str, Any]) -> Iterator[str]:
    if not figures["collectives"]:
        yield "collectives           none"
    for kind, found in figures["collectives"].items():
        yield f"{kind:20}  {found['count']:,} a step, {found['bytes'] / 1e9:,.3f} GB"
    if figures["places"]:
        yield "most of the time, in ms, by the line of block_recurrent/ that it comes from"
    for found in figures["places"]:
        spent = f"{found['seconds'] * 1e3:9,.1f} {found['share']:6.1%}"
        yield f"  {spent}  {found['pass']:14}  {found['place']}"
    for name in figures["unknown_loops"]:
        yield f"loop {name}: the program does not show its trip count, so it counts once"
    for name in figures.get("unknown_kernels", ()):
        yield f"kernel {name}: its instructions are not known, so its bytes alone count"
    for name, calls in figures.get("unknown_products", {}).items():
        yield f"kernel {name}, {calls:,} calls: only its bytes count, no products"


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--topology", required=True, help=f"chips, such as {EXAMPLES}")
    parser.add_argument("--json", type=file_to_write, help="also write the figures here, as JSON")
    arguments, config = parse(parser, argv, needs_data=lambda found: False)
    with tempfile.TemporaryDirectory() as schedules, training_knobs_named(config):
        target = make_target(arguments.topology, Path(schedules))
        _log.info("compiling for %s ...", target.topology)
        figures = compile_step(config, target)
        if arguments.json is not None:
            write_whole(arguments.json, json.dumps(figures, indent=2) + "\n")
        if "compile_seconds" in figures:
            print(describe(figures), end="")
        if not figures["fits"]:
            raise MemoryError(
                f"{figures['overflow']}; {figures['state_bytes'] / 1e9:.2f} GB of every device are "
                "parameters and optimizer state: mesh.fsdp shards them; more devices or a larger "
                "training.accumulate_steps lessen the rest"
            )
    return 0
