"""A law of other places: no network is needed."""

import json
import subprocess

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
