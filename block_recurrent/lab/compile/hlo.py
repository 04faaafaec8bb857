"""Reading a compiled program: its computations, how often each runs, and where it comes from."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The kind of an instruction is the first word before a parenthesis that a type does not end with.
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*?)\)(?=, [a-z]\w*=|\s*$)(.*)"
)
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_PAIRS = re.compile(r"(\w+)=(\d+)")


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
      name: unique in the program.
      kind: such as "fusion" or "all-reduce".
      type: of its result, with layouts.
      operands: names of the instructions that it reads; of a constant, its value.
      attributes: all the rest of the line.
      root: whether it is its computation's result.
    """

    name: str
    kind: str
    type: str
    operands: str
    attributes: str
    root: bool

    @property
    def inputs(self) -> list[str]:
        """Names of the instructions that it reads."""
        return _NAME.findall(self.operands)

    @property
    def bytes(self) -> int:
        """Of its result."""
        return type_bytes(self.type)

    @property
    def operation(self) -> str:
        """JAX's name of it, which tells forward from backward pass; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, role: str) -> list[str]:
        """The computations that it calls as "calls", "body", "condition" or "to_apply"."""
        return [name for found, name in _CALLED.findall(self.attributes) if found == role]


Computation = dict[str, Instruction]


class Frame(NamedTuple):
    """A line of source code, and the frame that called it."""

    file: str
    line: int
    caller: int


class Run(NamedTuple):
    """An instruction and how often a run of the program takes it.

    Attributes:
      instruction: itself.
      times: the product of the trip counts of the loops around it.
      fused: it is a part of a fusion, whose costs stand with the fusion.
      computation: what it is in.
    """

    instruction: Instruction
    times: int
    fused: bool
    computation: Computation


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that is called.
      frames: lines of source code by number.
      unknown_loops: names of loops whose trip count is not to be seen; they count once.
    """

    computations: Mapping[str, Computation]
    entry: str
    frames: Mapping[int, Frame]
    unknown_loops: list[str]

    def runs(self) -> Iterator[Run]:
        """Every instruction that is reached from the entry."""
        yield from self._runs(self.entry, 1, fused=False)

    def _runs(self, name: str, count: int, *, fused: bool) -> Iterator[Run]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield Run(instruction, count, fused, computation)
            if instruction.kind == "while":
                trips = count * self._trips(instruction)
                for body in instruction.called("body"):
                    yield from self._runs(body, trips, fused=fused)
            elif instruction.kind in ("call", "fusion", "async-start", "conditional"):
                inside = fused or instruction.kind == "fusion"
                for called in _callees(instruction):
                    yield from self._runs(called, count, fused=inside)

    def _trips(self, loop: Instruction) -> int:
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        (condition,) = loop.called("condition")
        trips = self._limit(condition)
        if trips is None and loop.name not in self.unknown_loops:
            self.unknown_loops.append(loop.name)
        return 1 if trips is None else trips

    def _limit(self, condition: str) -> int | None:
        """The constant that a loop's condition compares its counter with, which starts at 0."""
        instructions = self.computations.get(condition, {}).values()
        constants = [i.operands for i in instructions if i.kind == "constant"]
        limits = [int(text) for text in constants if text.isdecimal()]
        kinds = [i for i in instructions if i.kind == "compare"]
        inclusive = any("direction=LE" in i.attributes for i in kinds)
        return max(limits) + inclusive if limits else None


def _callees(instruction: Instruction) -> list[str]:
    branches = _BRANCHES.search(instruction.attributes)
    named = _NAME.findall(branches[1]) if branches else []
    return named + instruction.called("calls") + instruction.called("to_apply")


def type_bytes(text: str) -> int:
    """Bytes of an array type, or of all arrays in a tuple type, without padding."""
    total = 0
    for name, width, sizes in _SHAPE.findall(text):
        elements = 1
        for size in filter(None, sizes.split(",")):
            elements *= int(size)
        bits = 8 if name == "pred" else int(width)
        total += -(-elements * bits // 8)
    return total


def read_program(text: str) -> Program:
    """The program that a compiled step's `as_text()` shows."""
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, current, table = "", {}, {}
    for line in text.splitlines():
        if line[:1].isspace():
            instruction = _read_instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
        elif header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif re.fullmatch(r"[A-Z]\w+", line):
            table = tables.setdefault(line, {})
        elif row := re.match(r"(\d+) (.*)", line):
            table[int(row[1])] = row[2]
    return Program(computations, entry, _frames(tables), [])


def _read_instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, kind_of_result, kind, operands, attributes = found.groups()
    return Instruction(name, kind, kind_of_result, operands, attributes, root is not None)


def _frames(tables: Mapping[str, Mapping[int, str]]) -> dict[int, Frame]:
    """The frames of the tables that stand before the computations; callers are numbered from 1."""
    files, locations = tables.get("FileNames", {}), tables.get("FileLocations", {})
    frames = {}
    for number, row in tables.get("StackFrames", {}).items():
        frame = dict(_PAIRS.findall(row))
        place = dict(_PAIRS.findall(locations.get(int(frame["file_location_id"]), "")))
        file = files.get(int(place.get("file_name_id", 0)), "").strip('"')
        caller = int(frame.get("parent_frame_id", 1)) - 1
        frames[number] = Frame(file, int(place.get("line", 0)), caller)
    return frames
