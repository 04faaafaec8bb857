"""What a compiled program costs: the compiler's cycles, a bound for kernels, and collectives.

A TPU's compiler leaves its estimate of cycles on every fusion. It knows nothing of what is inside a
kernel written in Pallas; for that a bound is taken from what the kernel says of itself.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import block_recurrent
from block_recurrent.lab.compile.chips import Chip
from block_recurrent.lab.compile.hlo import Instruction, Program, Run

# Elementwise operations on an element of a softmax tile in a fused kernel, forward or backward: add
# the bias, choose by the mask, maximum, subtract, two for the exponential beside the unit that
# takes it, sum, convert for the product; with its gradient, subtract and multiply.
VECTOR_OPERATIONS = 10
KERNEL_TARGET = 'custom_call_target="tpu_custom_call"'
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_PACKAGE = Path(block_recurrent.__file__).parent
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COST = re.compile(r'"(flops|transcendentals|bytes_accessed)":"?(-?\d+)')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')


class Kernel(NamedTuple):
    """A kernel, all its calls together.

    Attributes:
      name: that it was given.
      calls: in a step.
      flops: of all calls.
      transcendentals: exponentials of all calls: elements of softmax tiles.
      bytes_accessed: in the chip's memory, by all calls.
    """

    name: str
    calls: int
    flops: int
    transcendentals: int
    bytes_accessed: int


class Collective(NamedTuple):
    """Exchanges of one kind between chips.

    Attributes:
      number: in a step.
      bytes: that go into one on a chip or come out, the larger, summed over them.
    """

    number: int
    bytes: int


class Costs(NamedTuple):
    """What a step costs a chip.

    Attributes:
      cycles: the compiler's own estimate, outside kernels; None where it gives none.
      kernel_cycles: the bounds of kernels.
      kernels: all, without bounds.
      places: (source line, pass) -> cycles, the most expensive first, kernels at their bounds.
      collectives: kind -> how many, and of how much.
      unknown_kernels: kernels that say nothing of themselves; they count nothing.
    """

    cycles: int | None
    kernel_cycles: float
    kernels: list[Kernel]
    places: dict[tuple[str, str], float]
    collectives: dict[str, Collective]
    unknown_kernels: list[str]


def kernel_seconds(kernel: Kernel, chip: Chip) -> dict[str, float]:
    """Least seconds of a kernel's matrix unit ("MXU"), vector unit ("VPU") and memory ("HBM")."""
    return {
        "MXU": kernel.flops / chip.peak_flops,
        "VPU": kernel.transcendentals * VECTOR_OPERATIONS / chip.vector_rate,
        "HBM": kernel.bytes_accessed / chip.bandwidth,
    }


def program_costs(program: Program, chip: Chip) -> Costs:
    """Adds up a program's costs on one device of a chip."""
    places: dict[tuple[str, str], float] = defaultdict(float)
    collectives: dict[str, Collective] = {}
    kernels: dict[str, Kernel] = {}
    cycles, bounds, unknown, estimated = 0, 0.0, [], False
    for run in program.runs():
        instruction, spent = run.instruction, 0.0
        _add_collective(collectives, run)
        found = None if run.fused else _CYCLES.search(instruction.attributes)
        if found:
            estimated, spent = True, int(found[1]) * run.times
            cycles += spent
        elif KERNEL_TARGET in instruction.attributes:
            kernel = _kernel(run)
            if kernel is None:
                unknown.append(instruction.name)
                continue
            spent = max(kernel_seconds(kernel, chip).values()) * (chip.clock or 0)
            bounds += spent
            _add_kernel(kernels, kernel)
        if spent:
            places[place(program, instruction), direction(instruction.operation)] += spent
    ordered = dict(sorted(places.items(), key=lambda item: -item[1]))
    total = int(cycles) if estimated else None
    return Costs(total, bounds, list(kernels.values()), ordered, collectives, unknown)


def place(program: Program, instruction: Instruction) -> str:
    """The line of source code that an instruction comes from, innermost within this library.

    Files of the library are relative to it. Where no line of it is known, the innermost of another
    package; where none is known at all, the kind of the instruction, which the compiler added.
    """
    if source := _SOURCE.search(instruction.attributes):
        return f"{_relative(source[1])}:{source[2]}"
    found = _FRAME.search(instruction.attributes)
    number, lines = int(found[1]) if found else 0, []
    while number in program.frames:
        frame = program.frames[number]
        lines.append((frame.file, frame.line))
        number = frame.caller
    own = [line for line in lines if Path(line[0]).is_relative_to(_PACKAGE)]
    chosen = (own or lines)[:1]
    return f"{_relative(chosen[0][0])}:{chosen[0][1]}" if chosen else f"({instruction.kind})"


def _relative(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE))
    return file.partition("site-packages/")[2] or path.name


def direction(operation: str) -> str:
    """The pass that an operation belongs to, from the name that JAX gave it."""
    if "rematted_computation" in operation:
        return "computed again"
    if "transpose(" in operation:
        return "backward"
    return "forward" if "jvp(" in operation else "update"


def _kernel(run: Run) -> Kernel | None:
    """What a call says of itself, times how often it is made; None where it says nothing."""
    found = dict(_COST.findall(run.instruction.attributes))
    if not found:
        return None
    names = ("flops", "transcendentals", "bytes_accessed")
    figures = [max(0, int(found.get(name, 0))) * run.times for name in names]
    return Kernel(run.instruction.name.split(".")[0], run.times, *figures)


def _add_kernel(kernels: dict[str, Kernel], kernel: Kernel) -> None:
    before = kernels.get(kernel.name, Kernel(kernel.name, 0, 0, 0, 0))
    sums = map(sum, zip(before[1:], kernel[1:], strict=True))
    kernels[kernel.name] = Kernel(kernel.name, *sums)


def _add_collective(collectives: dict[str, Collective], run: Run) -> None:
    """Counts an exchange once: where it begins, if it begins and ends apart."""
    instruction = run.instruction
    kind = instruction.kind.removesuffix("-start")
    if kind not in COLLECTIVES:
        return
    inputs = (run.computation.get(name) for name in instruction.inputs)
    given = sum(source.bytes for source in inputs if source is not None)
    result = instruction.bytes
    if instruction.kind.endswith("-start") and kind != "all-reduce":
        result -= given  # what is given stands in the type beside the result
    before = collectives.get(kind, Collective(0, 0))
    size = max(given, result) * run.times
    collectives[kind] = Collective(before.number + run.times, before.bytes + size)
