"""Laws of other places: no network is needed, and no clock that is right."""

import json
import subprocess
import time

from block_recurrent.runs.metrics import read_metrics
from block_recurrent.runs.seal import check_seal
from tests import quick_runs
from tests.interpreter import python

BLOCK = """
import socket

def refuse(*arguments, **options):
    raise OSError("the network is blocked")

for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse)
"""
ALL_PROGRAMS = """
import socket, sys
from experiments import evaluate, generate, train

try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError as error:
    assert str(error) == "the network is blocked", error
else:
    sys.exit("the network is not blocked")
gin, workdir, prompt = sys.argv[1:]
assert train.main([f"--gin_file={gin}", f"--workdir={workdir}"]) == 0
assert evaluate.main([f"--workdir={workdir}"]) == 0
options = [f"--prompt_file={prompt}", "--max_new_tokens=5"]
assert generate.main([f"--workdir={workdir}", *options]) == 0
"""


def without_network() -> tuple[str, ...]:
    """A command that runs another where there is no network at all, if the system permits it."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        permitted = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        permitted = False
    return command if permitted else ()


def test_training_evaluation_and_generation_need_no_network(tmp_path):
    inputs = quick_runs.make_inputs(tmp_path)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text(BLOCK)
    (tmp_path / "prompt").write_text("the quick ")
    arguments = (inputs / "tiny.gin", tmp_path / "run", tmp_path / "prompt")
    blocked = {"PYTHONPATH": str(tmp_path / "blocked")}
    python(ALL_PROGRAMS, *arguments, prefix=without_network(), **blocked)
    evaluation = json.loads((tmp_path / "run/evaluation_validation.json").read_text())
    assert evaluation["step"] == quick_runs.STEPS


def test_a_run_survives_a_clock_that_jumps_by_a_year(tmp_path, steps, monkeypatch, capsys):
    """A save that is under way may time out, which is a warning."""
    inputs = quick_runs.make_inputs(tmp_path)
    assert quick_runs.run(inputs, tmp_path / "steady") == 0
    now, ahead = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: now() + ahead[-1])
    steps.at = {3: lambda: ahead.append(365 * 86_400), 5: lambda: ahead.append(0)}
    assert quick_runs.run(inputs, tmp_path / "jumping") == 0
    assert len(quick_runs.warnings_in(capsys.readouterr().err)) <= 2
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("steady", "jumping")]
    for line in (*lines[0], *lines[1]):
        assert line.pop("tokens_per_second", 1) > 0
    assert lines[0] == lines[1]
    check_seal(quick_runs.checkpoint(tmp_path / "jumping", quick_runs.STEPS))
