"""The costs of a compiled program: time, by estimate or by bound, and collectives.

No public interface of JAX or XLA says how often an instruction runs or which source line it comes
from, so the program is read from the text that the compiler shows of it. A TPU's compiler notes its
estimate of cycles on every fusion. It notes nothing on a Pallas kernel, which therefore takes the
cycles of its instructions (`schedules`), or its bytes at the bandwidth of the memory, whichever
takes longer. A GPU's compiler notes nothing at all, so each kernel that it launches has a bound:
the operations of its matrix products at the chip's peak, or its bytes (a roofline).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import block_recurrent
from block_recurrent.lab.compile.target import Chip
from block_recurrent.model.attention.hopper.kernels import PRODUCTS, kernel_operations

LINES = 10  # of source code that are reported
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_MOSAIC = 'custom_call_target="mosaic_gpu'
_OUR_KERNEL = re.compile("|".join(PRODUCTS))
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BYTES = re.compile(r'"bytes_accessed":"?(\d+)')
_BODY = re.compile(r'"body":"([^"]*)"')
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The kind of an instruction is the first word before a parenthesis that a type does not end with.
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*?)\)(?=, [a-z]\w*=|\s*$)(.*)"
)
_NAME = re.compile(r"%([\w.\-]+)")
# Axes that a product sums over: those of its first operand, also in a call of NVIDIA's libraries.
_SUMMED = re.compile(r'lhs_contracting_dim(?:ensions"|s)[:=][\[{]([\d,"]*)')
# On a GPU these launch nothing. The first run what they call.
_CONTROL = {"while", "call", "conditional", "async-start"}
_FREE = _CONTROL | {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"opt-barrier", "partition-id", "replica-id", "async-update"}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SLICES = {"dynamic-slice", "slice", "gather"}
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


Executed = tuple[Instruction, int]  # and how often


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

    def runs(self, name: str | None = None, times: int = 1) -> Iterator[Executed]:
        """Yields every instruction that a computation reaches, and how often it is executed.

        Without a name, the computation is the program's entry; it is executed so many `times`.
        """
        for instruction in self._computations.get(name or self._entry, {}).values():
            yield instruction, times
            yield from self._called(instruction, times, self.runs)

    def launches(self, name: str | None = None, times: int = 1) -> Iterator[Executed]:
        """As `runs`, but only what a GPU launches as a kernel; nothing inside a kernel."""
        for instruction in self._computations.get(name or self._entry, {}).values():
            kind = instruction.kind
            if kind in _CONTROL:
                yield from self._called(instruction, times, self.launches)
            elif kind not in _FREE and not kind.endswith("-done"):
                yield instruction, times

    def _called(self, instruction: Instruction, times: int, visit: Any) -> Iterator[Executed]:
        if instruction.kind == "while":
            called = dict(_LOOP.findall(instruction.attributes))
            yield from visit(called["body"], times * self._trips(instruction, called["condition"]))
        for called, branches in _CALLED.findall(instruction.attributes):
            for each in _NAME.findall(branches) or [called]:
                yield from visit(each, times)

    def products(self, instruction: Instruction) -> int:
        """The operations of the matrix products in a kernel, multiplications and additions."""
        if instruction.kind == "fusion":
            inside = self._inside(instruction)
            return sum(self.products(each) for each in inside.values())
        if _MOSAIC in instruction.attributes:
            name = _OUR_KERNEL.search(instruction.attributes)
            shapes = list(map(_sizes, instruction.inputs))
            return kernel_operations(name[0], shapes) if name else 0
        summed = _SUMMED.search(instruction.attributes)
        if not summed or not instruction.inputs:
            return 0
        sizes = _sizes(instruction.inputs[0])
        axes = [int(axis) for axis in re.findall(r"\d+", summed[1])]
        outputs = math.prod(_sizes(instruction.type))
        return 2 * outputs * math.prod(sizes[axis] for axis in axes)

    def moved(self, instruction: Instruction) -> int:
        """Bytes that a kernel reads and writes; of what it only slices or updates, the slices."""
        inputs = list(map(type_bytes, instruction.inputs))
        if instruction.kind in _SLICES:
            return 2 * type_bytes(instruction.type)
        if instruction.kind == "dynamic-update-slice":
            return 2 * inputs[1]
        inside = self._inside(instruction) if instruction.kind == "fusion" else {}
        if not inside:
            return sum(inputs) + type_bytes(instruction.type)
        parameters = {
            int(each.operands): each.name for each in inside.values() if each.kind == "parameter"
        }
        read = (self._read(inside, parameters[n], size) for n, size in enumerate(inputs))
        return sum(read) + _written(inside, list(inside.values())[-1])

    def _inside(self, fusion: Instruction) -> dict[str, Instruction]:
        names = [called for called, _ in _CALLED.findall(fusion.attributes)]
        return self._computations.get(names[0], {}) if names else {}

    def _read(self, inside: Mapping[str, Instruction], name: str, whole: int) -> int:
        """Bytes of an array that the instructions inside a kernel read."""
        total = 0
        for each in inside.values():
            sources = _NAME.findall(each.operands)
            if name not in sources:
                continue
            if each.kind == "bitcast":
                total += self._read(inside, each.name, whole)
            elif sources[0] == name and each.kind in _SLICES:
                total += type_bytes(each.type)
            elif sources[0] != name or each.kind != "dynamic-update-slice":
                return whole
        return min(total, whole)

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


def program_costs(
    text: str, chip: Chip, kernel_cycles: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Adds up the costs on one device of a compiled program, given as `as_text()` returns it.

    Args:
      text: the program.
      chip: what it was compiled for.
      kernel_cycles: of a TPU's kernels, by the names of the instructions that call them. Of those
        that are equal, one is enough.

    Returns:
      Figures for JSON. `seconds` is None if a TPU's compiler gives no estimate. `places` are the
      source lines that cost most. `unknown_loops` are counted as one trip, and `unknown_kernels` as
      their bytes, because nothing more is known of them.
    """
    program = Program(text)
    collectives: dict[str, Counter[str]] = defaultdict(Counter)
    for instruction, times in program.runs():
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            collectives[kind].update(count=times, bytes=times * _exchanged_bytes(instruction))
    places: dict[tuple[str, str], float] = defaultdict(float)
    if chip.platform == "tpu":
        figures = _estimate(program, chip, places, kernel_cycles or {})
    else:
        figures = _roofline(program, chip, places)
    most = sorted(places.items(), key=lambda item: -item[1])[:LINES]
    total = sum(places.values()) or 1
    return figures | {
        "collectives": {kind: dict(found) for kind, found in collectives.items()},
        "places": [
            {"place": place, "pass": way, "seconds": spent, "share": spent / total}
            for (place, way), spent in most
        ],
        "unknown_loops": program.unknown_loops,
    }


def _estimate(
    program: Program,
    chip: Chip,
    places: dict[tuple[str, str], float],
    kernel_cycles: Mapping[str, int],
) -> dict[str, Any]:
    """A TPU's costs: the compiler's estimates, and those of kernels."""
    executed = list(program.runs())
    # The compiler makes equal kernels once.
    known = {
        _signature(instruction): kernel_cycles[instruction.name]
        for instruction, _ in executed
        if instruction.name in kernel_cycles
    }
    estimates, unknown, of_kernels = [], [], 0.0
    kernels: dict[str, Counter[str]] = defaultdict(Counter)
    for instruction, times in executed:
        spent = 0.0
        if found := _CYCLES.search(instruction.attributes):
            estimates.append(int(found[1]) * times)
            spent = estimates[-1] / chip.clock
        elif _KERNEL in instruction.attributes:
            cycles = known.get(_signature(instruction))
            if cycles is None:
                unknown.append(instruction.name)
            moved = _BYTES.search(instruction.attributes)
            each = {"cycles": cycles or 0, "bytes_accessed": int(moved[1]) if moved else 0}
            kernel = Counter({name: number * times for name, number in each.items()})
            spent = max(_kernel_seconds(kernel, chip).values())
            of_kernels += spent
            kernels[instruction.name.split(".")[0]].update(kernel, calls=times)
        if spent:
            places[program.source(instruction), direction(instruction)] += spent
    cycles = sum(estimates), round(of_kernels * chip.clock)
    outside, inside = cycles if estimates else (None, None)
    return {
        "cycles": sum(cycles) if estimates else None,
        "cycles_outside_kernels": outside,
        "cycles_of_kernels": inside,
        "seconds": sum(cycles) / chip.clock if estimates else None,
        "kernels": [
            {"name": name, **kernel, "seconds": _kernel_seconds(kernel, chip)}
            for name, kernel in kernels.items()
        ],
        "unknown_kernels": unknown,
    }


def _signature(instruction: Instruction) -> tuple[Any, ...]:
    """What makes two calls of kernels equal: types, and the program of the kernel."""
    body = _BODY.search(instruction.attributes)
    return instruction.type, instruction.inputs, body and body[1]


def _kernel_seconds(kernel: Mapping[str, int], chip: Chip) -> dict[str, float]:
    """Seconds of a kernel's instructions, and of its bytes."""
    return {
        "instructions": kernel["cycles"] / chip.clock,
        "memory": kernel["bytes_accessed"] / chip.bandwidth,
    }


def _roofline(program: Program, chip: Chip, places: dict[tuple[str, str], float]) -> dict[str, Any]:
    """A GPU's costs: of each kernel, products at the peak or bytes at the bandwidth."""
    launches = moved = products = 0
    silent: Counter[str] = Counter()
    for instruction, times in program.launches():
        bytes_, operations = program.moved(instruction), program.products(instruction)
        launches, moved = launches + times, moved + times * bytes_
        products += times * operations
        library = _TARGET.search(instruction.attributes)
        if library and not operations:
            silent[library[1]] += times
        spent = times * max(operations / chip.peak_flops, bytes_ / chip.bandwidth)
        places[program.source(instruction), direction(instruction)] += spent
    return {
        "seconds": sum(places.values()),
        "launches": launches,
        "moved_bytes": moved,
        "product_flops": products,
        "unknown_products": dict(silent),
    }


def _written(inside: Mapping[str, Instruction], root: Instruction) -> int:
    """Bytes that a kernel writes whose last instruction is `root`."""
    sources = [inside[name] for name in _NAME.findall(root.operands) if name in inside]
    if root.kind == "dynamic-update-slice":
        return type_bytes(sources[1].type)
    if root.kind == "bitcast":
        return _written(inside, sources[0])
    if root.kind == "tuple":
        return sum(_written(inside, each) for each in sources)
    return type_bytes(root.type)


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


def _sizes(text: str) -> list[int]:
    """The sizes of the axes of an array type, or of the first array in a tuple type."""
    found = _SHAPE.search(text)
    return [int(size) for size in found[3].split(",") if size] if found else []


def _exchanged_bytes(instruction: Instruction) -> int:
    """Bytes that go into a collective on a device or come out of it, the larger."""
    given, result = sum(map(type_bytes, instruction.inputs)), type_bytes(instruction.type)
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start":
        result -= given  # the type of its start holds the input beside the result
    return max(given, result)
