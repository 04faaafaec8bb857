"""The costs of a compiled program: the compiler's cycles, a bound for kernels, and collectives.

A TPU's compiler notes its estimate of cycles on every fusion. It knows nothing of the inside of a
Pallas kernel; for that a bound is computed from the kernel's own `cost_estimate`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from block_recurrent.lab.compile.chips import Chip
from block_recurrent.lab.compile.hlo import Program, Run, direction, input_bytes, type_bytes

# Elementwise operations on an element of a softmax tile in a fused kernel, forward or backward: add
# the bias, select by the mask, maximum, subtract, two for the exponential beside the unit that
# computes it, sum, convert for the product; with its gradient, subtract and multiply.
VECTOR_OPERATIONS = 10
LINES = 10  # of source code that are reported
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_KERNEL = 'custom_call_target="tpu_custom_call"'
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COST = re.compile(r'"(flops|transcendentals|bytes_accessed)":"?(-?\d+)')


def kernel_seconds(kernel: Mapping[str, int], chip: Chip) -> dict[str, float]:
    """Least seconds of a kernel's matrix unit ("MXU"), vector unit ("VPU") and memory ("HBM")."""
    return {
        "MXU": kernel["flops"] / chip.peak_flops,
        "VPU": kernel["transcendentals"] * VECTOR_OPERATIONS / chip.vector_rate,
        "HBM": kernel["bytes_accessed"] / chip.bandwidth,
    }


def program_costs(text: str, chip: Chip) -> dict[str, Any]:
    """Adds up a compiled program's costs on one device.

    Args:
      text: what `as_text()` of the compiled function returns.
      chip: the device.

    Returns:
      Figures for JSON. `cycles_outside_kernels` is None if the compiler gives no estimate. `places`
      are the source lines that cost most. `unknown_loops` and `unknown_kernels` are counted as one
      trip and as nothing, because the text says nothing of them.
    """
    program, estimates, silent, bounds = Program(text), [], [], 0.0
    kernels: dict[str, Counter[str]] = defaultdict(Counter)
    collectives: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[tuple[str, str], float] = defaultdict(float)
    for run in program.runs():
        instruction, spent = run.instruction, 0.0
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            exchanged = _exchanged_bytes(run) * run.times
            collectives[kind].update(count=run.times, bytes=exchanged)
        if found := _CYCLES.search(instruction.attributes):
            spent = int(found[1]) * run.times
            estimates.append(spent)
        elif _KERNEL in instruction.attributes:
            kernel = _kernel(run)
            if kernel is None:
                silent.append(instruction.name)
                continue
            spent = max(kernel_seconds(kernel, chip).values()) * chip.clock
            bounds += spent
            kernels[instruction.name.split(".")[0]].update(kernel)
        if spent:
            places[program.source(instruction), direction(instruction)] += spent
    total = sum(estimates) + bounds if estimates else 1
    most = sorted(places.items(), key=lambda item: -item[1])[:LINES]
    return {
        "cycles_outside_kernels": sum(estimates) if estimates else None,
        "cycles_of_kernels": round(bounds) if estimates else None,
        "collectives": {kind: dict(found) for kind, found in collectives.items()},
        "places": [
            {"place": place, "pass": way, "cycles": round(spent), "share": spent / total}
            for (place, way), spent in most
        ],
        "kernels": [
            {"name": name, **kernel, "seconds": kernel_seconds(kernel, chip)}
            for name, kernel in kernels.items()
        ],
        "unknown_loops": program.unknown_loops,
        "unknown_kernels": silent,
    }


def _kernel(run: Run) -> Counter[str] | None:
    """The calls of a kernel and their costs by its `cost_estimate`, or None if it has none."""
    found = {name: int(number) for name, number in _COST.findall(run.instruction.attributes)}
    names = ("flops", "transcendentals", "bytes_accessed")
    costs = {name: max(0, found.get(name, 0)) * run.times for name in names}
    return Counter({"calls": run.times, **costs}) if found else None


def _exchanged_bytes(run: Run) -> int:
    """Bytes that go into a collective on a device or come out of it, the larger."""
    given, result = input_bytes(run), type_bytes(run.instruction.type)
    if run.instruction.kind.endswith("-start") and run.instruction.kind != "all-reduce-start":
        result -= given  # the type of its start holds the input beside the result
    return max(given, result)
