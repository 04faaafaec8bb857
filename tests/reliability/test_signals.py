"""Laws of stopping: every program ends soon after SIGINT or SIGTERM, and training saves first."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from block_recurrent.data.tfds_reader import TfdsDirectory
from experiments import prepare_data
from tests.programs import PROGRAMS
from tests.soak import processes
from tests.soak.processes import CONFIG, ENVIRONMENT, EVERY, last_logged, newest_whole

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SOON, NEVER = 30.0, 300.0  # seconds
DOCUMENTS = 6_000


class Ended(NamedTuple):
    """A process that has ended: seconds are those since the last signal."""

    status: int
    seconds: float
    output: str
    errors: str
    workdir: Path


class Program:
    """A program under way in `folder`, with a work directory, or a corpus, of its name.

    Unless compiled programs are `cached`, it compiles for as long as usual.
    """

    def __init__(self, folder: Path, name: str, *command: str, cached: bool = True, path: str = ""):
        self.workdir = folder / name
        self.files = [folder / f"{name}.{kind}" for kind in ("output", "errors")]
        environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
        if cached:
            environment |= ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        with self.files[0].open("wb") as output, self.files[1].open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / command[0]), *command[1:]],
                env=environment,
                stdout=output,
                stderr=errors,
            )

    @property
    def output(self) -> str:
        return self.files[0].read_text()

    def send(self, *numbers: int, until: Callable[[], object], pause: float = 0) -> Ended:
        """Waits until something is so, sends signals, a pause before each; returns at the end.

        A second signal is sent when the first has been taken.
        """
        try:
            self._wait(until)
            for index, number in enumerate(numbers):
                if index:
                    self._wait(self._has_taken_all)
                time.sleep(pause)
                assert self.process.poll() is None, self.files[1].read_text()
                sent = time.monotonic()
                self.process.send_signal(number)
            self.process.wait(NEVER)
            seconds = time.monotonic() - sent
        finally:
            self.process.kill()
        errors = self.files[1].read_text()
        return Ended(self.process.wait(), seconds, self.output, errors, self.workdir)

    def _wait(self, until: Callable[[], object]) -> None:
        begin = time.monotonic()
        while not until():
            assert self.process.poll() is None, self.files[1].read_text()
            assert time.monotonic() < begin + NEVER
            time.sleep(0.005)

    def _has_taken_all(self) -> bool:
        """Whether no signal is on its way to the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return bool(re.search(r"ShdPnd:\s*0+\n", status))


def train(
    folder: Path, name: str, *options: str, cached: bool = True, program: str = "train.py"
) -> Program:
    command = [program, f"--gin_file={folder / CONFIG}", f"--workdir={folder / name}"]
    endless = "--gin.training.num_steps=1000000"
    return Program(folder, name, *command, endless, *options, cached=cached)


def compiling(folder: Path, name: str, *numbers: int) -> Ended:
    program = train(folder, name, cached=False)
    return program.send(*numbers, until=lambda: "parameters:" in program.output, pause=0.3)


def training(folder: Path, name: str, *numbers: int) -> Ended:
    program = train(folder, name)
    return program.send(*numbers, until=lambda: last_logged(program.workdir) > 10, pause=0.01)


def saving_without_end(folder: Path, name: str, *numbers: int) -> Ended:
    program = train(folder, name, program=str(Path(__file__).with_name("endless_save.py")))
    return program.send(*numbers, until=lambda: last_logged(program.workdir) > 10)


def evaluating_meanwhile(folder: Path, name: str, *numbers: int) -> Ended:
    program = train(folder, name, f"--gin.training.evaluate_every={EVERY}")
    return program.send(*numbers, until=lambda: last_logged(program.workdir) == EVERY, pause=0.3)


def evaluating(folder: Path, name: str, *numbers: int) -> Ended:
    program = Program(folder, name, "evaluate.py", f"--workdir={folder / 'trained'}")
    return program.send(*numbers, until=lambda: "validation" in program.output, pause=0.5)


def generating(folder: Path, name: str, *numbers: int) -> Ended:
    options = (f"--workdir={folder / 'trained'}", f"--prompt_file={folder / CONFIG}")
    program = Program(folder, name, "generate.py", *options, "--max_new_tokens=100000")
    return program.send(*numbers, until=lambda: len(program.output) > 5)


def prepare_arguments(folder: Path, name: str, kind: str) -> list[str]:
    return [kind, str(folder / kind), f"--output={folder / name}"]


def preparing(folder: Path, name: str, *numbers: int) -> Ended:
    arguments = prepare_arguments(folder, name, "text")
    program = Program(folder, name, "prepare_data.py", *arguments)
    return program.send(*numbers, until=(folder / f"{name}.partial" / "validation.json").exists)


def waiting_for_git(folder: Path, name: str, *numbers: int) -> Ended:
    """Python waits for another program, which here does nothing, and takes no signals."""
    arguments = prepare_arguments(folder, name, "git")
    path = folder / f"{name}.path"
    path.mkdir()
    (path / "git").write_text(
        f"#!/bin/sh\ntrap '' INT TERM\necho $$ > {path}/running\nexec sleep 60\n"
    )
    (path / "git").chmod(0o755)
    program = Program(folder, name, "prepare_data.py", *arguments, path=str(path))
    running = path / "running"
    try:
        return program.send(
            *numbers, until=lambda: running.exists() and running.read_text(), pause=0.2
        )
    finally:
        os.kill(int(running.read_text()), signal.SIGKILL)


# What a program is doing, and the signals that it gets.
FIRST = (compiling, training, evaluating_meanwhile, evaluating, generating, preparing)
SECOND = (saving_without_end, waiting_for_git)
ONE = list(zip(FIRST, itertools.cycle(SIGNALS)))
TWO = list(zip(SECOND, itertools.cycle([SIGNALS, SIGNALS[::-1]])))


def sent_to(*programs: Callable[..., Ended]) -> list[tuple[Callable[..., Ended], int]]:
    return [case for case in ONE if case[0] in programs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Corpora, raw data, and a run `trained` that was stopped before it was evaluated."""
    folder = tmp_path_factory.mktemp("signals") / "folder"
    processes.prepare(folder, characters=100_000)
    (folder / "text").mkdir()
    lines = (f'{{"id": "{number}", "text": "document {number}"}}\n' for number in range(DOCUMENTS))
    (folder / "text" / "documents.jsonl").write_text("".join(lines))
    for name in ("objects", "refs"):
        (folder / "git" / ".git" / name / "heads").mkdir(parents=True)
    (folder / "git" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "git" / ".git" / "refs" / "heads" / "main").write_text("0" * 40 + "\n")
    training(folder, "trained", signal.SIGTERM)
    return folder


@pytest.fixture(scope="module")
def ended(folder) -> Iterator[Callable[..., Ended]]:
    """How a case ended; all of them are under way, two at a time."""
    cases = [(doing, (number,)) for doing, number in ONE] + TWO
    with ThreadPoolExecutor(2) as pool:
        futures: dict[tuple, Future[Ended]] = {}
        for index, (doing, numbers) in enumerate(cases):
            futures[doing, numbers] = pool.submit(doing, folder, f"case{index}", *numbers)
        yield lambda doing, *numbers: futures[doing, numbers].result()


@pytest.mark.parametrize(("doing", "number"), ONE)
def test_a_program_ends_with_the_status_of_the_signal(doing, number, ended):
    status, seconds, _, errors, _ = ended(doing, number)
    print(doing.__name__, number, f"{seconds:.2f} s")
    assert status == 128 + number and seconds < SOON
    assert "Traceback" not in errors and f"by {signal.Signals(number).name}" in errors


@pytest.mark.parametrize(("doing", "number"), sent_to(training, evaluating_meanwhile))
def test_training_saves_its_last_step(doing, number, ended):
    *_, errors, workdir = ended(doing, number)
    logged, saved = last_logged(workdir), newest_whole(workdir)
    assert saved >= logged - 1 and f"step {saved} is saved" in errors
    assert not processes.half_written(workdir)
    assert "validation" not in (workdir / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("doing", "number"), sent_to(compiling, evaluating, generating))
def test_what_has_nothing_to_save_ends_at_once(doing, number, ended):
    *_, errors, workdir = ended(doing, number)
    assert "nothing to save" in errors
    assert last_logged(workdir) == 0


@pytest.mark.parametrize(("doing", "number"), sent_to(preparing))
def test_a_corpus_that_was_stopped_is_not_there_and_then_goes_on(
    doing, number, ended, folder, capsys
):
    workdir = ended(doing, number).workdir
    assert not workdir.exists()
    assert workdir.with_name(f"{workdir.name}.partial").is_dir()
    assert prepare_data.main(prepare_arguments(folder, workdir.name, "text")) == 0
    corpus = TfdsDirectory(workdir)
    assert sum(1 for split in corpus.splits for _ in corpus.documents(split)) == DOCUMENTS


@pytest.mark.parametrize(("doing", "numbers"), TWO)
def test_a_second_signal_ends_it_at_once(doing, numbers, ended):
    status, _, _, errors, _ = ended(doing, *numbers)
    assert status == 128 + numbers[1]
    assert "by a second signal" in errors and "Traceback" not in errors
