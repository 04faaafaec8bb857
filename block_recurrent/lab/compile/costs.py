"""The costs of a compiled program: the compiler's cycles, a bound for kernels, and collectives.

A TPU's compiler notes its estimate of cycles on every fusion. It knows nothing of the inside of a
Pallas kernel; for that a bound is computed from the kernel's own `cost_estimate`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from block_recurrent.lab.compile.hlo import Instruction, Program, direction, type_bytes
from block_recurrent.lab.compile.target import Chip

# Elementwise operations on an element of a softmax tile in a fused kernel, forward or backward: add
# the bias, select by the mask, maximum, subtract, two for the exponential beside the unit that
# computes it, sum, convert for the product; with its gradient, subtract and multiply.
VECTOR_OPERATIONS = 10
LINES = 10  # of source code that are reported
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COST = re.compile(r'"(flops|transcendentals|bytes_accessed)":"?(-?\d+)')
_NO_CALLS = {"calls": 0, "flops": 0, "transcendentals": 0, "bytes_accessed": 0}


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
    kernels: dict[str, Counter[str]] = defaultdict(lambda: Counter(_NO_CALLS))
    collectives: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[tuple[str, str], float] = defaultdict(float)
    for instruction, times in program.runs():
        spent = 0.0
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            collectives[kind].update(count=times, bytes=times * _exchanged_bytes(instruction))
        if found := _CYCLES.search(instruction.attributes):
            spent = int(found[1]) * times
            estimates.append(spent)
        elif _KERNEL in instruction.attributes:
            given = _COST.findall(instruction.attributes)
            if not given:
                silent.append(instruction.name)
                continue
            kernel = Counter({name: max(0, int(number)) * times for name, number in given})
            spent = max(kernel_seconds(kernel, chip).values()) * chip.clock
            bounds += spent
            kernels[instruction.name.split(".")[0]].update(kernel, calls=times)
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


def _exchanged_bytes(instruction: Instruction) -> int:
    """Bytes that go into a collective on a device or come out of it, the larger."""
    given, result = sum(map(type_bytes, instruction.inputs)), type_bytes(instruction.type)
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start":
        result -= given  # the type of its start holds the input beside the result
    return max(given, result)
