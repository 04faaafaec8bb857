"""What `compile_report` found, for people."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from block_recurrent.config import ExperimentConfig
from block_recurrent.lab.compile.compile_report import compile_report
from block_recurrent.lab.compile.hlo_costs import VECTOR_OPERATIONS
from block_recurrent.lab.compile.target import Target
from block_recurrent.system.files import write_whole


def report(config: ExperimentConfig, target: Target, json_file: Path | None = None) -> None:
    """Compiles a run's step, prints what the compiler says of it, and writes it as JSON.

    Raises:
      MemoryError: the step does not fit; all else has been done before.
    """
    print(f"compiling for {target.topology} ...", file=sys.stderr, flush=True)
    figures = compile_report(config, target)
    if json_file is not None:
        write_whole(json_file, json.dumps(figures, indent=2) + "\n")
    if "compile_seconds" in figures:
        print(describe(figures), end="")
    if not figures["fits"]:
        raise MemoryError(
            f"{figures['overflow']}; {figures['state_bytes'] / 1e9:.2f} GB are parameters and the "
            "optimizer's, on every device: mesh.fsdp shares them out, more devices the rest"
        )


def describe(figures: dict[str, Any]) -> str:
    """The figures of a step that was compiled, as text for a screen."""
    return "".join(f"{line}\n" for line in _lines(figures))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    devices, memory = figures["devices"], figures["memory_bytes"]
    yield f"{figures['topology']}: {devices} x {figures['chip']}, jax {figures['jax']}"
    mesh = (f"{axis} {size}" for axis, size in figures["mesh"].items())
    yield _row("mesh", " x ".join(mesh))
    yield _row("compilation", f"{figures['compile_seconds']:,.0f} s")
    yield _row(
        "memory of a device",
        f"{figures['peak_bytes'] / 1e9:.2f} GB at most, of {memory / 1e9:.2f}: "
        + ("fits" if figures["fits"] else "does not fit"),
    )
    yield _row(
        "",
        f"{figures['state_bytes'] / 1e9:.2f} GB of that are parameters and the optimizer's",
    )
    if figures["shared_parameters"]:
        yield "parameters along the axes of the mesh"
        for where, names in figures["shared_parameters"].items():
            yield f"  {where:20}{names}"
    yield _row(
        "useful operations",
        f"{figures['flops'] / 1e12:,.4g} TFLOP a step of {figures['tokens']:,} tokens, "
        f"{figures['flops'] / figures['tokens'] / 1e9:.3f} GFLOP a token",
    )
    yield from _time(figures)
    yield from _collectives(figures["collectives"])
    yield from _places(figures["places"])
    yield from _unknown(figures)


def _time(figures: dict[str, Any]) -> Iterator[str]:
    if figures["cycles"] is None:
        yield _row("cycles", "the compiler for this chip estimates none")
        return
    outside, kernels = figures["cycles_outside_kernels"], figures["cycles_of_kernels"]
    yield _row("cycles, estimated", f"{outside / 1e6:,.0f} M outside kernels")
    if figures["kernels"]:
        yield _row("", f"{kernels / 1e6:,.0f} M in kernels, at least; see below")
        yield _row("", f"{figures['cycles'] / 1e6:,.0f} M together")
    seconds = figures["seconds"]
    yield _row(
        "time of a step",
        f"{seconds:.3f} s by that estimate, {figures['tokens'] / seconds:,.0f} tokens/s",
    )
    yield _row(
        "share of peak",
        f"{figures['share_of_peak']:.1%} of {figures['peak_flops'] / 1e12:,.0f} TFLOP/s",
    )
    yield from _kernels(figures["kernels"])


def _kernels(kernels: list[dict[str, Any]]) -> Iterator[str]:
    if kernels:
        yield f"kernels, least ms by unit ({VECTOR_OPERATIONS} vector operations an exponential)"
    for kernel in kernels:
        seconds = (f"{unit} {value * 1e3:,.1f}" for unit, value in kernel["seconds"].items())
        yield f"  {kernel['name']}, {kernel['calls']:,} calls: {', '.join(seconds)}"


def _collectives(collectives: dict[str, dict[str, int]]) -> Iterator[str]:
    if not collectives:
        yield _row("collectives", "none")
    for kind, found in collectives.items():
        yield _row(kind, f"{found['count']:,} a step, {found['bytes'] / 1e9:,.3f} GB")


def _places(places: list[dict[str, Any]]) -> Iterator[str]:
    if places:
        yield "most cycles, by the line of block_recurrent/ that they come from"
    for found in places:
        yield (
            f"  {found['cycles'] / 1e6:9,.1f} M {found['share']:6.1%}  "
            f"{found['pass']:14}  {found['place']}"
        )


def _unknown(figures: dict[str, Any]) -> Iterator[str]:
    for name in figures["unknown_loops"]:
        yield f"loop {name}: its trip count is not to be seen, so that it counts once"
    for name in figures["unknown_kernels"]:
        yield f"kernel {name}: it has no cost_estimate, so that it counts nothing"


def _row(name: str, value: str) -> str:
    return f"{name:20}  {value}"
