"""Laws of several processes: together they do what one process does, and they end together."""

import json
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from block_recurrent.runs.checkpoints import read_parameters
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.runs.seal import check_seal
from tests.helpers import slow
from tests.parallel.cluster import Ended, finish, run, start
from tests.quick_runs import STEPS, TEXT, write_corpus, write_gin

IMPATIENT = str(Path(__file__).parent / "impatient.py")
ENDLESS = {"training.num_steps": 1_000_000, "training.checkpoint_every": 1000}


@pytest.fixture(scope="module")
def gin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    values = {
        "data.path": str(write_corpus(folder / "corpus")),
        "data.batch_size": 4,
        "training.trackers": (),
    }
    return write_gin(folder / "run.gin", values)


def words(gin: Path, workdir: Path, **values: object) -> list[str]:
    """Of train.py."""
    bound = [f"--gin.{name}={value}" for name, value in values.items()]
    return [f"--gin_file={gin}", f"--workdir={workdir}", *bound]


@pytest.fixture(scope="module")
def alone(gin, tmp_path_factory) -> Path:
    """The work directory of a run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert [ended.status for ended in run("train.py", words(gin, workdir), 1)] == [0]
    return workdir


def losses(workdir: Path) -> np.ndarray:
    lines = read_metrics(workdir / "metrics.jsonl")
    return np.array([line["bits_per_token"] for line in lines if "bits_per_token" in line])


def assert_same_run(workdir: Path, other: Path) -> None:
    """Same figures of every step, same documents, nearly the same parameters."""
    assert np.abs(losses(workdir) - losses(other)).max() < 1e-5
    here, there = (read_parameters(path / "checkpoints") for path in (workdir, other))
    assert here.keys() == there.keys()
    for name, array in here.items():
        np.testing.assert_allclose(array, there[name], rtol=1e-4, atol=1e-5, err_msg=name)


def assert_trained_by(ended: list[Ended], workdir: Path, alone: Path) -> None:
    """The same run as of one process; each has written its shards, and only the first one spoke."""
    assert [each.status for each in ended] == [0] * len(ended), ended
    assert_same_run(workdir, alone)
    writers = {path.name for path in workdir.glob(f"checkpoints/{STEPS}/training/ocdbt.process_*")}
    assert writers == {f"ocdbt.process_{index}" for index in range(len(ended))}
    for other in ended[1:]:
        assert [line for line in other.output.splitlines() if "[Gloo]" not in line] == []


def test_four_processes_train_as_one_does(gin, alone, tmp_path):
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2, "training.checkpoint_every": STEPS}
    ended = run("train.py", words(gin, tmp_path / "run", **mesh), 4)
    assert_trained_by(ended, tmp_path / "run", alone)
    assert "parameters: " in ended[0].output and f"step {STEPS}: " in ended[0].errors
    assert [each.errors for each in ended[1:]] == [""] * 3


@pytest.mark.slow
def test_two_that_go_on_beyond_a_damaged_checkpoint_train_as_one_does(gin, alone, tmp_path):
    ended = run("train.py", words(gin, tmp_path / "run", **{"training.num_steps": 4}), 2)
    assert [each.status for each in ended] == [0, 0], ended
    damaged = max((tmp_path / "run/checkpoints/4/training/ocdbt.process_1/d").iterdir())
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    ended = run("train.py", words(gin, tmp_path / "run"), 2)
    assert_trained_by(ended, tmp_path / "run", alone)
    assert ended[0].errors.count("WARNING") == 1 and "checkpoint 4 is damaged" in ended[0].errors
    assert "continuing from step 2" in ended[0].errors and ended[1].errors == ""
    assert (tmp_path / "run/checkpoints/damaged-4").is_dir()


def test_a_signal_to_one_stops_all_after_the_same_step(gin, tmp_path):
    started = start("train.py", words(gin, tmp_path, **ENDLESS), 2)
    wait_for_steps(tmp_path)
    started[1].send_signal(signal.SIGTERM)
    ended = finish(started)
    assert [each.status for each in ended] == [128 + signal.SIGTERM] * 2, ended
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert f"step {max(steps):,} is saved" in ended[0].errors
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics[-1]["step"] == max(steps)


EVALUATED = 5
# Whether a run does it, by its work directory.
DOING: dict[str, Callable[[Path], object]] = {
    "compiling": lambda workdir: (workdir / "launches.jsonl").exists(),
    "a step": lambda workdir: len(metrics_of(workdir)) >= 3,
    "evaluating": lambda workdir: metrics_of(workdir)[-1:] == [EVALUATED],
    "saving": lambda workdir: [*workdir.glob("checkpoints/*.orbax-checkpoint-tmp")],
}


@pytest.mark.parametrize(
    ("doing", "victim"),
    [
        ("a step", 0),
        *slow(("a step", 1), ("compiling", 0), ("compiling", 1)),
        *slow(("evaluating", 0), ("evaluating", 1), ("saving", 0), ("saving", 1)),
    ],
)
def test_a_frozen_process_times_out_and_ends_when_it_wakes(gin, tmp_path, doing, victim):
    """The same command goes on."""
    workdir = tmp_path / "run"
    held = words(gin, workdir, **{"training.evaluate_every": EVALUATED})
    endless = [f"--gin.{name}={value}" for name, value in ENDLESS.items()]
    started = start(IMPATIENT, [*held, *endless], 2)
    wait_until(lambda: DOING[doing](workdir))
    started[victim].send_signal(signal.SIGSTOP)
    other = started[1 - victim]
    _, errors = other.communicate(timeout=300)
    started[victim].send_signal(signal.SIGCONT)
    (woken,) = finish(started[victim : victim + 1])
    assert other.returncode == 9
    assert f"(process {victim} has been silent for 12 s)" in errors
    assert woken.status in (9, -signal.SIGABRT), woken
    last = max([0, *metrics_of(workdir)])
    (again,) = run("train.py", [*held, f"--gin.training.num_steps={last + 2}"], 1)
    assert again.status == 0, again


def test_a_process_that_waits_for_its_data_for_ever_times_out(gin, tmp_path):
    ended = run(IMPATIENT, [*words(gin, tmp_path / "run"), "--hang"], 2)
    assert ended[0].status == 9
    assert "(process 1 has waited 12 s longer for its data)" in ended[0].errors
    assert ended[1].status in (9, -signal.SIGABRT)


@pytest.mark.parametrize("victim", [0, *slow(1)])  # 0 has the service of all
def test_a_killed_process_ends_the_others_and_fewer_go_on(gin, tmp_path, victim):
    workdir = tmp_path / "run"
    held = words(gin, workdir, **{"training.checkpoint_every": 1})
    started = start("train.py", [*held, "--gin.training.num_steps=100000"], 2)
    wait_for_steps(workdir, 3)
    started[victim].kill()
    ended = finish(started)
    assert ended[victim].status == -signal.SIGKILL
    other = ended[1 - victim]
    assert other.status == 9 or (victim == 0 and other.status == -signal.SIGABRT)
    assert other.status != 9 or "another process has ended or does not" in other.errors
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    final = f"--gin.training.num_steps={step + 2}"
    (again,) = run("train.py", [*held, final], 1)
    assert again.status == 0 and "continuing from step" in again.errors


def metrics_of(workdir: Path) -> list[int]:
    """The steps that have been logged."""
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]


def wait_for_steps(workdir: Path, number: int = 2) -> None:
    """Returns when so many steps have been logged."""
    wait_until(lambda: len(metrics_of(workdir)) >= number)


def wait_until(condition: Callable[[], object]) -> None:
    """Returns when something is so."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_second_cluster_in_the_same_work_directory_is_refused(gin, tmp_path):
    first = start("train.py", words(gin, tmp_path, **ENDLESS), 2)
    wait_for_steps(tmp_path)
    second = run("train.py", words(gin, tmp_path, **ENDLESS), 2)
    assert [each.status for each in second] == [4, 4], second
    assert "another process" in second[0].errors and "is training in" in second[0].errors
    first[0].send_signal(signal.SIGTERM)
    assert [each.status for each in finish(first)] == [128 + signal.SIGTERM] * 2


def test_an_error_in_process_0_ends_all(gin, alone):
    ended = run("train.py", words(gin, alone, **{"model.num_states": 5}), 2)
    assert [each.status for each in ended] == [2, 2]
    assert "model.num_states = 3, now 5" in ended[0].errors


@pytest.mark.parametrize("slow_one", slow(0, 1))
@pytest.mark.skipif(not shutil.which("strace"), reason="strace makes a disk slow")
def test_a_slow_disk_makes_a_run_slow_and_changes_nothing(gin, alone, tmp_path, slow_one):
    calls = "fsync,fdatasync,pwrite64,mkdir,rename,unlink,rmdir"
    log = tmp_path / "calls"
    half_a_second = f"inject={calls}:delay_enter=500000"
    slowly = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", "-e", half_a_second]
    ended = finish(start("train.py", words(gin, tmp_path / "run"), 2, {slow_one: slowly}), 1000)
    assert_trained_by(ended, tmp_path / "run", alone)
    assert log.read_text().count("DELAYED") > 50


def test_processes_score_every_token_once(gin, alone):
    ended = run("evaluate.py", [f"--workdir={alone}"], 2)
    assert [each.status for each in ended] == [0, 0], ended
    found = json.loads((alone / "evaluation_validation.json").read_text())
    assert found["tokens"] == sum(len(TEXT[n:]) * (n + 1) for n in range(2))
    expected = read_metrics(alone / "metrics.jsonl")[-1]["validation/bits_per_token"]
    assert found["bits_per_token"] == pytest.approx(expected, abs=1e-5)


def test_a_checkpoint_that_one_process_cannot_write_is_saved_by_none(gin, tmp_path):
    held = words(gin, tmp_path, **(ENDLESS | {"training.checkpoint_every": 1}))
    started = start(IMPATIENT, held, 2)
    wait_for_steps(tmp_path)
    resource.prlimit(started[1].pid, resource.RLIMIT_FSIZE, (16, 16))
    ended = finish(started)
    assert [each.status for each in ended] == [4, 4], ended
    assert "could not be written" in ended[0].errors and "File too large" in ended[0].errors
    store = tmp_path / "checkpoints"
    newest = max(int(path.name) for path in store.iterdir() if path.name.isdigit())
    assert f"the newest is that of step {newest:,}" in ended[0].errors
    check_seal(store / str(newest))
