"""A training process seen from outside: what it has logged, saved and left behind.

The processes train a tiny model on a generated corpus, a step every few milliseconds.
"""

import dataclasses
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.config import ConfigError
from block_recurrent.runs.checkpoint_folder import PARAMETERS, PROGRESS, TRAINING, read_arrays
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.metrics import METRICS, read_metrics
from block_recurrent.system.digests import digest
from block_recurrent.system.signals import StopRequest

CONFIG = "tiny.gin"
STEPS, EVERY = 400, 40
BINDINGS: dict[str, Any] = {
    "model.vocab_size": 256,
    "model.num_layers": 1,
    "model.recurrent_layers": (0,),
    "model.model_size": 16,
    "model.num_heads": 2,
    "model.head_size": 8,
    "model.mlp_size": 16,
    "model.window": 8,
    "model.num_states": 4,
    "model.dropout": 0.1,
    "data.source": "jsonl",
    "data.batch_size": 2,
    "data.segment_length": 16,
    "optimizer.warmup_steps": 50,
    "training.num_steps": STEPS,
    "training.log_every": 1,
    "training.evaluate_every": 2 * EVERY,
    "training.checkpoint_every": EVERY,
}
# Quick compilation, and that only once.
ENVIRONMENT = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
CONTINUING = re.compile(r"continuing from step ([\d,]+)")
POLL_SECONDS, LONGEST_SECONDS = 0.003, 300
MARK = "left-by-a-killed-process"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a soak does.

    Attributes:
      folder: for all files; new, or of an earlier call.
      kills: number of kills.
      seed: of the random moments.
      stop: requests a stop.
      report: is called with the progress, as text.
    """

    folder: Path
    kills: int
    seed: int = 0
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    report: Callable[[str], None] = lambda text: None


class Failure(Exception):
    """A check failed; the message says which."""


def prepare(folder: Path, characters: int = 100) -> None:
    """Makes a corpus and a configuration.

    Args:
      folder: new, or of an earlier call, whose files are removed.
      characters: approximate length of each of the three validation documents.

    Raises:
      ConfigError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds something else; choose another --workdir")
    shutil.rmtree(folder, ignore_errors=True)
    books = folder.absolute() / "books"
    books.mkdir(parents=True)
    values = BINDINGS | {"data.path": str(books)}
    (folder / CONFIG).write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    rng = random.Random(0)
    words = ["".join(rng.choices("aeinrst", k=rng.randint(2, 7))) for _ in range(50)]
    lengths = {"train": [rng.randint(100, 1000) for _ in range(12)], "validation": 3 * [characters]}
    for split, sizes in lengths.items():
        texts = [" ".join(rng.choices(words, k=1 + size // 5)) for size in sizes]
        lines = [json.dumps({"id": f"{split}{n}", "text": text}) for n, text in enumerate(texts)]
        (books / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


class Training:
    """A process of `block-recurrent train` that trains in `folder`/`name`.

    Args:
      folder: made by `prepare`.
      name: of the work directory.
      options: added to the command line.
      log: name of the file for its output; `name` unless given.

    Attributes:
      workdir: of the run.
      log: where its output goes.
      seconds_to_first_step: from its start until it was seen to have logged a step.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        options: Sequence[str] = (),
        log: str | None = None,
    ):
        self.workdir = folder / name
        self.log, self._metrics = folder / f"{log or name}.log", self.workdir / METRICS
        self._metrics_before = self._inode()
        command = [sys.executable, "-m", "block_recurrent", "train"]
        command += [f"--gin_file={folder / CONFIG}", f"--workdir={self.workdir}", *options]
        environment = os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        self._begin = time.monotonic()
        self.seconds_to_first_step: float | None = None

    def _inode(self) -> int | None:
        return self._metrics.stat().st_ino if self._metrics.exists() else None

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def has_restored(self) -> bool:
        """Whether it has restored a checkpoint, after which it replaces the file of metrics."""
        return self._inode() not in (None, self._metrics_before)

    def restored_step(self) -> int:
        """The step it says it continues from, 0 if it says nothing."""
        found = CONTINUING.search(self.output)
        return int(found[1].replace(",", "")) if found else 0

    def steps_taken(self) -> int:
        """How many steps it has logged."""
        if not self.has_restored():
            return 0
        taken = last_logged(self.workdir) - self.restored_step()
        if taken > 0 and self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.monotonic() - self._begin
        return max(taken, 0)

    def half_written(self) -> set[Path]:
        """The checkpoints that this process is writing or removing."""
        return {path for path in half_written(self.workdir) if not (path / MARK).exists()}

    def wait(self, until: Callable[[], bool], stop: StopRequest) -> bool:
        """Waits for a condition: returns True if it came, False if the process ended first.

        Raises:
          Failure: neither came within `LONGEST_SECONDS`.
          Stopped: `stop` was requested.
        """
        while self.process.poll() is None and not until():
            stop.check()
            if time.monotonic() - self._begin > LONGEST_SECONDS:
                raise Failure(f"a start hangs:\n{self.output}")
            self.steps_taken()
            time.sleep(POLL_SECONDS)
        return self.process.poll() is None

    def finish(self, stop: StopRequest) -> None:
        """Waits for the end of the process, and kills it if the wait is interrupted.

        Raises:
          Failure: it failed, or does not end.
          Stopped: `stop` was requested.
        """
        try:
            self.wait(lambda: False, stop)
        finally:
            self.kill()
        self.check_ended()

    def check_ended(self) -> None:
        """Raises Failure if the process ended with another status than 0."""
        if self.process.returncode:
            raise Failure(f"a start ended with status {self.process.returncode}:\n{self.output}")

    def kill(self) -> None:
        """Kills the process if it still runs."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def last_logged(workdir: Path) -> int:
    """The newest step in the metrics, or 0."""
    lines = read_metrics(workdir / METRICS)
    return lines[-1]["step"] if lines else 0


def newest_whole(workdir: Path) -> int:
    """The newest step with a finished checkpoint, or 0."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def half_written(workdir: Path) -> list[Path]:
    """Checkpoints that are or were being written."""
    return [path for path in workdir.glob("checkpoints/*.orbax-checkpoint-tmp") if path.is_dir()]


def outcome_of(workdir: Path) -> dict[str, Any]:
    """What must be the same of every run: metrics, and digests of all arrays of checkpoints."""
    checkpoints = workdir / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    return {
        "metrics": [
            {name: line[name] for name in line if name != "tokens_per_second"}
            for line in read_metrics(workdir / METRICS)
        ],
        "names in checkpoints": names,
        "best checkpoint": Checkpoints(checkpoints).best_step(),
        **{f"checkpoint {name}": contents_of(checkpoints / name) for name in names},
    }


def contents_of(folder: Path) -> dict[str, str]:
    """The digests of all arrays of a checkpoint, and its progress."""
    arrays = {
        f"{name}: {path}": digest(np.ascontiguousarray(array).tobytes())
        for name in (PARAMETERS, TRAINING)
        for path, array in read_arrays(folder, name).items()
    }
    return arrays | {PROGRESS: (folder / PROGRESS / "data.json").read_text()}
