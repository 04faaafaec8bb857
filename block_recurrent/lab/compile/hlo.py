"""A compiled program, read from the text that the compiler shows of it.

No public interface of JAX or XLA says how often an instruction runs or which source line it comes
from, so that the text is parsed.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import block_recurrent

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
    """A compiled program.

    Args:
      text: what `as_text()` of a compiled function returns.

    Attributes:
      unknown_loops: names of loops whose trip count is not in the text; `runs` counts them once.
    """

    def __init__(self, text: str):
        self.unknown_loops: list[str] = []
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry, self._tables = "", dict[str, dict[int, str]]()
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
                table[int(row[1])] = row[2]

    def runs(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yields every instruction that a computation reaches, and how often it is executed.

        Args:
          name: of the computation; the program's entry by default.
          times: how often the computation is executed.
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
        frames = self._tables.get("StackFrames", {})
        while number in frames:
            frame = {name: int(value) for name, value in _PAIRS.findall(frames[number])}
            place = dict(_PAIRS.findall(self._tables["FileLocations"][frame["file_location_id"]]))
            file = Path(self._tables["FileNames"][int(place["file_name_id"])].strip('"'))
            if file.is_relative_to(_PACKAGE):
                return f"{file.relative_to(_PACKAGE)}:{place['line']}"
            package = str(file).partition("site-packages/")[2] or file.name
            other = other or f"{package}:{place['line']}"
            number = frame.get("parent_frame_id", 1) - 1  # callers are numbered from 1
        return other or f"({instruction.kind})"


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
