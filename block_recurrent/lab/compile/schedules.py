"""How many cycles the kernels of a TPU's program take, from what its compiler writes of them.

The compiler estimates nothing of a Pallas kernel, but it can write down the instructions that it
made of one, in bundles that a core issues one a cycle. The text shows which loops a bundle is in,
and with which number the counter of a loop is compared at its end.
"""

import re
from pathlib import Path

# For LIBTPU_INIT_ARGS, which the compiler reads once.
FLAGS = "--xla_jf_dump_to={folder} --xla_jf_dump_llo_pass_label_regex=final_bundles"
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
_BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ +(?:(LB)|[A-Z]+)? *: *(>*) *\{(.*)", re.MULTILINE)
_EXIT = re.compile(r"(%\S+) = scmp\.ge\S* \S+, (\d+) /\* loop exit test")


def read_cycles(folder: Path) -> dict[str, int]:
    """Cycles of a call, by the names of what was compiled since the last time.

    What a loop of unknown length is in is left out. The files are removed.
    """
    found = {}
    for file in sorted(folder.iterdir()):
        name = _FILE.fullmatch(file.name)
        if name and (cycles := count_cycles(file.read_text())) is not None:
            found[name[1]] = cycles
        file.unlink()
    return found


def count_cycles(text: str) -> int | None:
    """The bundles that are executed if every branch is taken and nothing waits for memory.

    None if the text does not say how often a loop runs, or where it ends.
    """
    bundles, trips, ends = [0], [1], [""]  # of the program, and of the loops around a bundle

    def leave() -> None:
        inside = bundles.pop() * trips.pop()
        ends.pop()
        bundles[-1] += inside

    for begins, nesting, operations in _BUNDLE.findall(text):
        # A bundle in the midst of a loop may carry the mark of what surrounds the loop, so a loop
        # lasts until the branch that ends it.
        depth = len(nesting) - bool(begins)
        while len(trips) - 1 > depth and operations != "}" and not ends[-1]:
            leave()
        if begins:
            bundles.append(0)
            trips.append(0)
            ends.append("a branch that is not known yet")
        bundles[-1] += 1
        if exit_test := _EXIT.search(operations):
            ends[-1], trips[-1] = f"sbr.rel (!{exit_test[1]})", int(exit_test[2])
        if ends[-1] in operations:
            ends[-1] = ""
    if any(ends):
        return None
    while len(trips) > 1:
        leave()
    return bundles[0]
