"""The costs of a compiled program: the compiler's cycles, a bound for kernels, and collectives.

No public interface of JAX or XLA says how often an instruction runs or which source line it comes
from, so the program is read from the text that the compiler shows of it. A TPU's compiler notes its
estimate of cycles on every fusion. It knows nothing of the inside of a Pallas kernel; for that a
bound is computed from the kernel's own `cost_estimate`.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import block_recurrent
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
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The kind of an instruction is the first word before a parenthesis that a type does not end with.
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*?)\)(?=, [a-z]\w*=|\s*$)(.*)"
)
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"\b(body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_PAIRS = re.compile(r"(\w+)=(\d+)")
_PACKAGE = Path(block_recurrent.__file__).parent


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
      name: unique in the program.
      type: of its result, with layouts.
      kind: such as "fusion" or "all-reduce".
      operands: the text in its parentheses: what it reads; of a constant, its value.
      attributes: the rest of the line.
      inputs: the types of what it reads.
    """

    name: str
    type: str
    kind: str
    operands: str
    attributes: str
    inputs: tuple[str, ...]


class Program:
    """A compiled program, from what `as_text()` of a compiled function returns.

    Attributes:
      unknown_loops: names of loops whose trip count is not in the text; `runs` counts them once.
    """

    def __init__(self, text: str):
        self.unknown_loops: list[str] = []
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry, self._tables = "", dict[str, dict[int, Any]]()
        current, table = {}, {}
        for line in text.splitlines():
            if line[:1].isspace():
                if found := _INSTRUCTION.match(line):
                    read = (current.get(name) for name in _NAME.findall(found[4]))
                    inputs = tuple(source.type for source in read if source)
                    current[found[1]] = Instruction(*found.groups(), inputs=inputs)
            elif header := _COMPUTATION.match(line):
                current = self._computations.setdefault(header[2], {})
                self._entry = header[2] if header[1] else self._entry
            elif re.fullmatch(r"[A-Z]\w+", line):
                table = self._tables.setdefault(line, {})
            elif row := re.match(r"(\d+) (.*)", line):
                pairs = {name: int(value) for name, value in _PAIRS.findall(row[2])}
                table[int(row[1])] = pairs if row[2].startswith("{") else row[2].strip('"')

    def runs(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yields every instruction that a computation reaches, and how often it is executed.

        Without a name, the computation is the program's entry; it is executed so many `times`.
        """
        for instruction in self._computations.get(name or self._entry, {}).values():
            yield instruction, times
            if instruction.kind == "while":
                called = dict(_LOOP.findall(instruction.attributes))
                trips = self._trips(instruction, called["condition"])
                yield from self.runs(called["body"], times * trips)
            for called, branches in _CALLED.findall(instruction.attributes):
                for each in _NAME.findall(branches) or [called]:
                    yield from self.runs(each, times)

    def _trips(self, loop: Instruction, condition: str) -> int:
        """A loop's trip count: noted on it, or the constant that its counter is compared with."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        instructions = self._computations.get(condition, {}).values()
        limits = [i.operands for i in instructions if i.kind == "constant"]
        limits = [int(text) for text in limits if text.isdecimal()]
        if limits:
            return max(limits) + any("direction=LE" in i.attributes for i in instructions)
        if loop.name not in self.unknown_loops:
            self.unknown_loops.append(loop.name)
        return 1

    def source(self, instruction: Instruction) -> str:
        """The line of source code that an instruction comes from, innermost within this library.

        If no line of the library is known, the innermost of another package; if no line at all, the
        kind of the instruction, which the compiler added.
        """
        found = _FRAME.search(instruction.attributes)
        number, other = int(found[1]) if found else 0, ""
        while frame := self._tables.get("StackFrames", {}).get(number):
            place = self._tables["FileLocations"][frame["file_location_id"]]
            file = Path(self._tables["FileNames"][place["file_name_id"]])
            if file.is_relative_to(_PACKAGE):
                return f"{file.relative_to(_PACKAGE)}:{place['line']}"
            package = str(file).partition("site-packages/")[2] or file.name
            other = other or f"{package}:{place['line']}"
            number = frame.get("parent_frame_id", 1) - 1  # callers are numbered from 1
        return other or f"({instruction.kind})"


def kernel_seconds(kernel: Mapping[str, int], chip: Chip) -> dict[str, float]:
    """Least seconds of a kernel's matrix unit ("MXU"), vector unit ("VPU") and memory ("HBM")."""
    return {
        "MXU": kernel["flops"] / chip.peak_flops,
        "VPU": kernel["transcendentals"] * VECTOR_OPERATIONS / chip.vector_rate,
        "HBM": kernel["bytes_accessed"] / chip.bandwidth,
    }


def program_costs(text: str, chip: Chip) -> dict[str, Any]:
    """Adds up the costs on one device of a compiled program, given as `as_text()` returns it.

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


def direction(instruction: Instruction) -> str:
    """The pass that an instruction belongs to, from the name that JAX gave it."""
    found = _OPERATION.search(instruction.attributes)
    operation = found[1] if found else ""
    if "rematted_computation" in operation:
        return "computed again"
    if "transpose(" in operation:
        return "backward"
    return "forward" if "jvp(" in operation else "update"


def type_bytes(text: str) -> int:
    """Bytes of an array type, or of all arrays in a tuple type, without padding."""
    total = 0
    for name, width, sizes in _SHAPE.findall(text):
        elements = math.prod(int(size) for size in sizes.split(",") if size)
        total += -(-elements * (8 if name == "pred" else int(width)) // 8)
    return total


def _exchanged_bytes(instruction: Instruction) -> int:
    """Bytes that go into a collective on a device or come out of it, the larger."""
    given, result = sum(map(type_bytes, instruction.inputs)), type_bytes(instruction.type)
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start":
        result -= given  # the type of its start holds the input beside the result
    return max(given, result)
