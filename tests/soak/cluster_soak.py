"""Kills one of several processes that train together, again and again.

A tiny model is trained by one process without interruption. Then it is trained by one, two or four
processes; a random one of them is killed (SIGKILL) at a random moment, and another number of
processes continues. The laws:

- The others end by themselves within a minute, with the status for a lost process, or aborted by
  JAX if JAX notices the loss of process 0 first.
- A restart continues from the newest finished checkpoint, without a warning.
- The figures of every step equal those of one process without interruption, up to rounding.
"""

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from block_recurrent.parallel.processes import LOST
from block_recurrent.runs.metrics import METRICS, read_metrics
from tests.soak.processes import (
    EVERY,
    STEPS,
    Failure,
    Plan,
    Training,
    free_port,
    newest_whole,
    prepare,
)

NUMBERS = (1, 2, 4)  # of processes
LONGEST_END = 60.0  # seconds until the others have ended
ENDS = (LOST, -signal.SIGABRT)  # statuses of the others
# Rounding depends on the number of processes and grows from step to step, less with small steps.
OPTIONS = ("--gin.data.batch_size=4", "--gin.optimizer.learning_rate=0.01")
MOST_APART = 1e-3  # bits a token


class ClusterSummary(NamedTuple):
    """What was observed.

    Attributes:
      kills: number of kills by the number of processes.
      runs: number of runs that reached the last step.
      longest_end: the most seconds until the others had ended.
      apart: the largest difference to the run without interruption, in bits a token.
    """

    kills: Counter[int]
    runs: int
    longest_end: float
    apart: float

    def describe(self) -> str:
        """The summary as text."""
        kinds = ", ".join(f"{self.kills[number]} of {number} processes" for number in NUMBERS)
        return (
            f"{self.kills.total()} kills, each followed by another number of processes: {kinds}\n"
            f"runs that ended like the one without interruption: {self.runs}\n"
            f"seconds until the others had ended: at most {self.longest_end:.1f}\n"
            f"bits a token between steps with and without interruption: at most {self.apart:.1e}"
        )


def cluster_soak(plan: Plan) -> ClusterSummary:
    """Kills processes as often as planned, then lets the run end. Errors are those of `soak`."""
    prepare(plan.folder)
    rng, killed = random.Random(plan.seed), plan.folder / "killed"
    summary, number = ClusterSummary(Counter(), 0, 0.0, 0.0), 1
    plan.report("training once without interruption")
    _finish(plan, "whole", number)
    while (done := summary.kills.total()) < plan.kills:
        plan.report(f"{done} of {plan.kills} kills, {summary.runs} runs ended")
        number = _another(number, rng)
        seconds = _kill_one_of(plan, number, rng)
        summary.kills[number] += 1
        summary = summary._replace(longest_end=max(summary.longest_end, seconds))
        if done + 1 == plan.kills or newest_whole(killed) > STEPS - 3 * EVERY:
            number = _another(number, rng)
            _finish(plan, killed.name, number)
            apart = max(summary.apart, _apart(plan.folder))
            summary = summary._replace(runs=summary.runs + 1, apart=apart)
            shutil.rmtree(killed)
    return summary


def _another(number: int, rng: random.Random) -> int:
    return rng.choice([other for other in NUMBERS if other != number])


def _start(plan: Plan, name: str, number: int) -> list[Training]:
    address = f"127.0.0.1:{free_port()}"
    cluster = (f"--coordinator_address={address}", f"--process_count={number}")
    return [
        Training(
            plan.folder,
            name,
            (*OPTIONS, *cluster, f"--process_index={index}"),
            log=f"{name}.{index}",
        )
        for index in range(number)
    ]


def _finish(plan: Plan, name: str, number: int) -> None:
    """Trains to the end with so many processes."""
    members = _start(plan, name, number)
    try:
        for member in members:
            member.finish(plan.stop)
    finally:
        for member in members:
            member.kill()


def _kill_one_of(plan: Plan, number: int, rng: random.Random) -> float:
    """Starts so many processes, kills one, and returns the seconds until the others have ended."""
    before = newest_whole(plan.folder / "killed")
    members = _start(plan, "killed", number)
    try:
        steps = rng.randint(1, 2 * EVERY)
        if not members[0].wait(lambda: members[0].steps_taken() >= steps, plan.stop):
            raise Failure(f"a start ended by itself:\n{members[0].output}")
        seconds = _kill_one(members, rng.randrange(number))
    finally:
        for member in members:
            member.kill()
    _check_continued(members[0], before)
    return seconds


def _kill_one(members: list[Training], victim: int) -> float:
    """Kills a process, and returns the seconds until the others have ended by themselves."""
    members[victim].kill()
    begin = time.monotonic()
    for index, member in enumerate(members):
        if index == victim:
            continue
        try:
            member.process.wait(timeout=LONGEST_END)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"not ended after {LONGEST_END:.0f} s:\n{member.output}") from error
        if member.process.returncode not in ENDS:
            raise Failure(f"status {member.process.returncode}:\n{member.output}")
    return time.monotonic() - begin


def _check_continued(member: Training, newest: int) -> None:
    if member.has_restored() and member.restored_step() != newest:
        raise Failure(f"restored step {member.restored_step()}, not the newest, {newest}")
    if "WARNING" in member.output:
        raise Failure(f"a warning:\n{member.output}")


def _apart(folder: Path) -> float:
    """The largest difference between figures of both runs; raises Failure if it is too large."""
    runs = [read_metrics(folder / name / METRICS) for name in ("whole", "killed")]
    steps = [[line["step"] for line in run] for run in runs]
    if steps[0] != steps[1]:
        raise Failure(f"{len(steps[1])} lines of metrics, of other steps than {len(steps[0])}")
    differences = [
        abs(line[name] - other[name])
        for line, other in zip(*runs, strict=True)
        for name in ("bits_per_token", "validation/bits_per_token")
        if name in line
    ]
    if not max(differences) <= MOST_APART:
        raise Failure(f"figures are {max(differences)} bits a token apart")
    return max(differences)
