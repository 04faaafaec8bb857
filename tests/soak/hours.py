"""Trains for hundreds of thousands of tiny steps, and checks that nothing grows with them.

    python -m tests.soak.hours --steps=200000

The run is evaluated and saved 20 times, shows its metrics in TensorBoard, and may have 64 files
open. The laws: after the first tenth of the steps its memory grows by 1 % at most, it has no more
files open, and it prints a line for each evaluation and at most one every ten seconds besides.

Each save leaves some 80 kB in memory. Of 48 kB of that Python knows: TensorStore 0.1.86 does not
free what `Spec.to_json` returns, nor the figures that Orbax asks for.
"""

import re
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from block_recurrent.command_line.parser import Parser
from block_recurrent.system.progress import ProgressLine
from tests.soak.processes import Failure, Training, prepare

FILES, TIMES, GROWTH = 64, 20, 0.01
STEP = re.compile(rb'"step": (\d+)')


class Sample(NamedTuple):
    """A moment of a run: the step that was logged last, kB of memory, number of open files."""

    step: int
    memory: int
    files: int


def sample(training: Training) -> Sample:
    process = Path(f"/proc/{training.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0])
    with open(training.workdir / "metrics.jsonl", "rb") as lines:
        lines.seek(max(0, lines.seek(0, 2) - 1000))
        steps = STEP.findall(lines.read())
    return Sample(int(steps[-1]) if steps else 0, memory, len([*(process / "fd").iterdir()]))


def train(folder: Path, steps: int, line: ProgressLine) -> list[Sample]:
    """Trains to the end and returns samples, one a second.

    Raises:
      Failure: the run failed, or it printed too much.
    """
    prepare(folder)
    begin, values = time.monotonic(), {"num_steps": steps, "log_every": steps // 4000}
    values |= dict.fromkeys(("evaluate_every", "checkpoint_every"), steps // TIMES)
    options = [f"--gin.training.{name}={value}" for name, value in values.items()]
    training, samples = Training(folder, "hours", options), []
    try:
        resource.prlimit(training.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        while training.process.poll() is None:
            time.sleep(1)
            if training.process.poll() is None and (training.workdir / "metrics.jsonl").exists():
                samples.append(sample(training))
                line.show(f"step {samples[-1].step:,}, {samples[-1].memory:,} kB")
    finally:
        training.kill()
    training.check_ended()
    seconds, lines = time.monotonic() - begin, training.output.count("\n")
    if lines > TIMES + seconds / 10 + 10:
        raise Failure(f"{lines} lines were printed:\n{training.output}")
    return samples


def growth(samples: list[Sample], steps: int) -> dict[str, tuple[int, int]]:
    """The most kB of memory, and the most open files, in the second tenth and in the last.

    Raises:
      Failure: it grew.
    """
    tenths = [[s for s in samples if low <= 10 * s.step / steps < low + 1] for low in (1, 9)]
    found = {
        name: (max(getattr(s, name) for s in tenths[0]), max(getattr(s, name) for s in tenths[1]))
        for name in ("memory", "files")
    }
    if (
        found["memory"][1] > (1 + GROWTH) * found["memory"][0]
        or found["files"][1] > found["files"][0]
    ):
        raise Failure(f"it grows: {found}")
    return found


def main() -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="how many (200000)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/hours"), help="runs/hours")
    options = parser.parse_args()
    line = ProgressLine()
    try:
        found = growth(train(options.workdir, options.steps, line), options.steps)
    except Failure as failure:
        print(f"{parser.prog}: failed: {failure}", file=sys.stderr)
        return 1
    line.end()
    print(f"{options.steps:,} steps: in the second tenth and the last at most {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
