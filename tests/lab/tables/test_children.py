"""Programs run side by side: each ends once, says what it says, and stops when asked to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from block_recurrent.lab.tables.children import (
    count_cores,
    default_backend,
    run_side_by_side,
)
from block_recurrent.system.signals import StopRequest

SAYS = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))"
# Says that it is there, and when it is asked to stop, how often it was.
WAITS = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.3)
print(len(asked), flush=True)
sys.exit(3)
"""
PARENT = """
import sys
from block_recurrent.lab.tables.children import run_side_by_side
from block_recurrent.system.signals import StopRequest
command = [sys.executable, "-c", sys.argv[1]]
list(run_side_by_side({"child": command}, 1, StopRequest(), lambda *said: print(*said, flush=True)))
"""
CHILD = """
import os, time
from block_recurrent.lab.tables.children import stop_with_parent
stop_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def python(code, *words):
    return [sys.executable, "-c", code, *map(str, words)]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_program_ends_once_with_its_status_and_its_words(at_once):
    heard = []
    commands = {f"child {n}": python(SAYS, n, n) for n in range(3)}
    ended = list(
        run_side_by_side(commands, at_once, StopRequest(), lambda *said: heard.append(said))
    )
    assert sorted(ended) == [(f"child {n}", n) for n in range(3)]
    assert sorted(heard) == [(f"child {n}", str(n)) for n in range(3)]


def test_a_request_to_stop_reaches_each_child_once_and_no_other_begins():
    stop, heard = StopRequest(), []

    def hear(name, text):
        heard.append((name, text))
        if len(heard) == 2:
            stop.note(signal.SIGTERM)

    commands = {name: python(WAITS) for name in "abc"}
    ended = list(run_side_by_side(commands, 2, stop, hear))
    assert sorted(ended) == [("a", 3), ("b", 3)]
    assert sorted(heard) == [("a", "1"), ("a", "ready"), ("b", "1"), ("b", "ready")]


def test_children_of_an_iterator_that_is_closed_are_stopped():
    heard = []
    commands = {"quick": python(SAYS, "", 0), "long": python(WAITS)}
    ended = run_side_by_side(commands, 2, StopRequest(), lambda *said: heard.append(said))
    assert next(ended) == ("quick", 0)
    ended.close()


def test_a_child_ends_with_its_parent():
    parent = subprocess.Popen(python(PARENT, CHILD), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline().split()[1])
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 50
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_only_cores_that_the_process_may_use_are_counted():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert count_cores() == len(allowed)


def test_the_backend_is_that_of_another_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert default_backend() == "cpu"
