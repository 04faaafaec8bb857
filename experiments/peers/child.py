"""The side of a codebase: takes a step for every line it is sent, and says what it took.

It needs Python's standard library alone, so that it runs where a codebase's own packages are.
Everything but the answers goes to the standard error stream.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Size = dict[str, Any]


def serve(prepare: Callable[[Size], tuple[Callable[[], object], dict[str, Any]]]) -> None:
    """Answers line by line until there are no more, each answer one JSON object.

    Args:
      prepare: given the size of the comparison, the first line, returns a function that takes one
        step and waits for its results, and what the codebase says of itself. A function among the
        latter is asked again after every step, next to it in time.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    step, facts = prepare(json.loads(sys.stdin.readline()))
    asked = {name: fact for name, fact in facts.items() if callable(fact)}
    step()
    answer({name: fact for name, fact in facts.items() if name not in asked})
    while sys.stdin.readline():
        faults = _minor_faults()
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        taken = {"seconds": seconds, "minor_faults": _minor_faults() - faults}
        answer(taken | {name: fact() for name, fact in asked.items()})


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
