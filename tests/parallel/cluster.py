"""Programs run by several processes on this machine, one CPU device each."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.interpreter import settings
from tests.programs import PROGRAMS
from tests.soak.processes import free_port


class Ended(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    output: str
    errors: str


def start(
    program: str,
    words: Sequence[object],
    processes: int,
    prefixes: Mapping[int, Sequence[str]] = {},
) -> list[subprocess.Popen]:
    """Starts a program of `experiments/` as so many processes, some of them by another command."""
    address = f"127.0.0.1:{free_port()}"
    cluster = [f"--coordinator_address={address}", f"--process_count={processes}"]
    command = [sys.executable, str(PROGRAMS / program), *map(str, words)]
    return [
        subprocess.Popen(
            [*prefixes.get(index, ()), *command, *cluster, f"--process_index={index}"],
            env=settings(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def finish(started: Sequence[subprocess.Popen], seconds: float = 400) -> list[Ended]:
    """Waits for all processes; kills them when that takes too long."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        Ended(process.returncode, *output) for process, output in zip(started, outputs, strict=True)
    ]


def run(program: str, words: Sequence[object], processes: int) -> list[Ended]:
    """Runs a program to its end."""
    return finish(start(program, words, processes))
