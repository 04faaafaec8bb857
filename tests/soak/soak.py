"""Kills a training run again and again, and checks that it survives every time.

A tiny model is trained on a generated corpus, once without interruption. Then it is trained again,
killed (SIGKILL) at random moments, often within a save, and restarted. The laws:

- A restart continues from the newest finished checkpoint, without a warning.
- That checkpoint is at most one save interval older than the newest save that had begun. Saves run
  in the background, one at a time, so up to two intervals of steps are repeated.
- After a restart has restored, no partial checkpoint is left.
- A run that reaches its last step equals the one without interruption, bit by bit: checkpoints,
  metrics and evaluation. Then another run begins, until all kills are done.
"""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tests.soak import processes
from tests.soak.processes import EVERY, MARK, Failure, Plan, Training

WITHIN = ("start", "step", "save")
SAVE_SECONDS = 0.2


class Summary(NamedTuple):
    """What was observed.

    Attributes:
      kills: number of kills within a "start" (until the first step is logged), "step" or "save".
      most_lost: the most logged steps that were repeated after a kill.
      continued: number of starts that continued from a later step than 0.
      restarts: seconds of every start until its first step was logged.
      runs: number of runs that reached the last step, each equal to the one without interruption.
    """

    kills: Counter[str]
    most_lost: int
    continued: int
    restarts: list[float]
    runs: int

    def describe(self) -> str:
        """The summary as text."""
        kinds = ", ".join(f"{self.kills[kind]} within a {kind}" for kind in WITHIN)
        seconds = sorted(self.restarts) or [0.0]
        return (
            f"{self.kills.total()} kills: {kinds}\n"
            f"most steps lost: {self.most_lost}, where a save begins every {EVERY}; "
            f"{self.continued} starts went on from a later step than 0\n"
            f"seconds from a start to its first step: {seconds[len(seconds) // 2]:.1f}, "
            f"at most {seconds[-1]:.1f}\n"
            f"runs that ended like the one without interruption: {self.runs}"
        )


class Killer:
    """Runs that are killed, one after the other, and what was observed of them."""

    def __init__(self, plan: Plan):
        self.folder, self.stop = plan.folder, plan.stop
        self.rng = random.Random(plan.seed)
        self.workdir = plan.folder / "killed"
        self.summary = Summary(Counter(), 0, 0, [], 0)
        self.logged = self.whole = 0
        training = Training(self.folder, "whole")
        training.finish(self.stop)
        self.expected = processes.outcome_of(training.workdir)

    def start(self, *, kill: bool) -> None:
        """Starts the run, kills it at a random moment or lets it end, and checks the laws."""
        training = Training(self.folder, "killed")
        try:
            until, delay = self._moment(training) if kill else (lambda: False, 0.0)
            if training.wait(until, self.stop):
                end = time.monotonic() + delay
                training.wait(lambda: time.monotonic() >= end, self.stop)
        finally:
            training.kill()
        if training.has_restored():
            self._check_restored(training)
        if training.process.returncode == -signal.SIGKILL:
            self._note_kill(training)
        else:
            training.check_ended()
            self._check_outcome()

    def _moment(self, training: Training) -> tuple[Callable[[], bool], float]:
        """A random moment: a condition, and a number of seconds after it."""
        if not self.summary.kills:  # within the very first save, when there is no checkpoint yet
            return lambda: bool(training.half_written()), 0.0
        kind = self.rng.choice(WITHIN)
        if kind == "start":
            return lambda: True, self.rng.uniform(0, max(self.summary.restarts, default=3.0))
        if kind == "step":
            count = self.rng.randint(1, 4 * EVERY)
            return lambda: training.steps_taken() >= count, 0.0
        seen, count = set(), self.rng.randint(1, 4)

        def begun() -> bool:
            seen.update(training.half_written())
            return len(seen) >= count

        return begun, self.rng.uniform(0, SAVE_SECONDS)

    def _check_restored(self, training: Training) -> None:
        """Checks the laws of a start after a kill."""
        restored = training.restored_step()
        begun = newest_begun(self.logged)
        left = sorted(str(path.parent) for path in self.workdir.glob(f"checkpoints/*/{MARK}"))
        laws = {
            f"restored step {restored}, not the newest, {self.whole}": restored == self.whole,
            f"restored step {restored}, but {begun} had begun": restored >= begun - EVERY,
            f"half-written, and still there after the next start: {left}": not left,
            f"a warning:\n{training.output}": "WARNING" not in training.output,
        }
        broken = [law for law, holds in laws.items() if not holds]
        if broken:
            raise Failure("; ".join(broken))
        self.summary = self.summary._replace(
            most_lost=max(self.summary.most_lost, self.logged - restored),
            continued=self.summary.continued + (restored > 0),
        )

    def _note_kill(self, training: Training) -> None:
        """Records what the killed process has left, and marks its partial checkpoints."""
        taken, half_written = training.steps_taken(), training.half_written()
        self.summary.kills["save" if half_written else "step" if taken else "start"] += 1
        if training.seconds_to_first_step is not None:
            self.summary.restarts.append(training.seconds_to_first_step)
        self.logged = processes.last_logged(self.workdir)
        self.whole = processes.newest_whole(self.workdir)
        for path in half_written:
            (path / MARK).touch()

    def _check_outcome(self) -> None:
        """Compares a finished run with the one without interruption, and removes it."""
        found = processes.outcome_of(self.workdir)
        names = sorted({*found, *self.expected})
        differing = [name for name in names if found.get(name) != self.expected.get(name)]
        if differing:
            raise Failure(f"not as without interruption: {', '.join(differing)}")
        self.summary = self.summary._replace(runs=self.summary.runs + 1)
        shutil.rmtree(self.workdir)
        self.logged = self.whole = 0


def newest_begun(logged: int) -> int:
    """The newest save that has certainly begun when a step has been logged.

    A step is logged before its own save begins, and that save waits for the end of the one before.
    """
    return max(logged - 1, 0) // EVERY * EVERY


def soak(plan: Plan) -> Summary:
    """Kills training as often as planned, then lets it end.

    Raises:
      Failure: a law was broken.
      ConfigError: the folder holds something else.
      Stopped: `plan.stop` was requested.
    """
    processes.prepare(plan.folder)
    plan.report("training once without interruption")
    killer = Killer(plan)
    while (done := killer.summary.kills.total()) < plan.kills:
        plan.report(f"{done} of {plan.kills} kills, {killer.summary.runs} runs ended")
        killer.start(kill=True)
    killer.start(kill=False)
    return killer.summary
