"""Times steps of this library beside those of other code, in turn, a process for each codebase.

    python experiments/peers/compare.py --meliad=../meliad --port_python=../port/bin/python
    python experiments/peers/compare.py --meliad=../meliad --rounds=30 --json=comparison.json

A step is forward and backward: the loss, the gradients of all parameters and the next carried
state, without an optimizer. The README of this folder says how to get the other code, and in what
it differs. Every ratio is the median over rounds of a codebase's time to ours in the same round.
"""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.options import file_to_write, positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig

FOLDER = Path(__file__).parent
OURS, MELIAD, PORT = "block_recurrent", "meliad", "pytorch_port"
Answer = dict[str, Any]


class Codebase:
    """A process that holds one model and takes a step when it is told to."""

    def __init__(self, command: Sequence[str | Path]):
        self._name = Path(command[1]).name
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str = "") -> Answer:
        """Sends a line; returns the answer.

        Raises:
          ValueError: the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError(f"{self._name} ended with status {self._process.wait()}; see above")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def commands(arguments: Any) -> dict[str, list[str | Path]]:
    """The command line of every codebase that is to be compared."""
    chosen: dict[str, list[str | Path]] = {OURS: [sys.executable, FOLDER / "ours.py"]}
    if arguments.meliad is not None:
        python = arguments.meliad_python
        chosen[MELIAD] = [python, FOLDER / "meliad_step.py", arguments.meliad]
    if arguments.port_python is not None:
        chosen[PORT] = [arguments.port_python, FOLDER / "pytorch_port.py"]
    return chosen


def take_turns(
    commands: dict[str, list[str | Path]], size: dict[str, Any], rounds: int
) -> tuple[dict[str, Answer], dict[str, list[Answer]]]:
    """What each codebase says of itself, and its steps; one warm-up round is left out."""
    codebases: dict[str, Codebase] = {}
    try:
        for name, command in commands.items():
            codebases[name] = Codebase(command)
        facts = {name: codebase.ask(json.dumps(size)) for name, codebase in codebases.items()}
        steps: dict[str, list[Answer]] = {name: [] for name in codebases}
        for _ in range(rounds + 1):
            for name, codebase in codebases.items():
                steps[name].append(codebase.ask())
    finally:
        for codebase in codebases.values():
            codebase.end()
    return facts, {name: taken[1:] for name, taken in steps.items()}


def summarize(steps: list[Answer], ours: list[Answer], flops: float, tokens: int) -> Answer:
    """Medians over the rounds of one codebase, and of its ratios to ours in the same round."""
    pairs = [(a["seconds"], b) for a, b in zip(steps, ours, strict=True)]
    seconds = statistics.median(step["seconds"] for step in steps)
    return {
        "milliseconds": seconds * 1e3,
        "tokens_per_second": tokens / seconds,
        "ratio": statistics.median(time / own["seconds"] for time, own in pairs),
        "share_of_matmul": statistics.median(
            flops / time / own["matmul_flops"] for time, own in pairs
        ),
        "minor_faults": statistics.median(step["minor_faults"] for step in steps),
    }


def show(results: dict[str, Answer]) -> None:
    """The table of all codebases."""
    columns = ("step ms", "tokens/s", "ratio", "of matmul", "faults")
    print(f"{'':18}" + "".join(f"{column:>11}" for column in columns))
    for name, row in results.items():
        print(
            f"{name:18}{row['milliseconds']:11,.1f}{row['tokens_per_second']:11,.0f}"
            f"{row['ratio']:11.3f}{row['share_of_matmul']:11.3f}{row['minor_faults']:11,.0f}"
            f"  {row['package']}"
        )


def compare(arguments: Any, config: ExperimentConfig) -> dict[str, Any]:
    """Runs the comparison and prints it; returns all figures, for JSON."""
    data = config.data
    size = {
        "model": dataclasses.asdict(config.model),
        "batch_size": data.batch_size,
        "segment_length": data.segment_length,
    }
    facts, steps = take_turns(commands(arguments), size, arguments.rounds)
    tokens, flops = data.batch_size * data.segment_length, facts[OURS]["step_flops"]
    results = {
        name: facts[name] | summarize(steps[name], steps[OURS], flops, tokens) for name in steps
    }
    matmul = statistics.median(step["matmul_flops"] for step in steps[OURS])
    print(f"matrix product 2048 x 2048: {matmul / 1e9:,.1f} GFLOP/s, {arguments.rounds} rounds\n")
    show(results)
    return {"size": size, "matmul_flops": matmul, "codebases": results, "steps": steps}


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--meliad", type=Path, metavar="FOLDER", help="clone of the authors' code")
    parser.add_argument("--meliad_python", default=sys.executable, help="runs it; this one")
    parser.add_argument("--port_python", metavar="PYTHON", help="has the PyTorch port installed")
    parser.add_argument("--rounds", type=positive, default=15, help="steps of each codebase")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write figures")
    arguments, config = parse(
        parser, argv, lambda found: [] if found.gin_file else ["benchmark.gin"]
    )
    if arguments.meliad is not None and not (arguments.meliad / "transformer").is_dir():
        parser.error(f"--meliad={arguments.meliad} is no clone of the authors' code")
    figures = compare(arguments, config)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
