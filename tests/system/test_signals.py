"""Laws of stopping politely, and at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from block_recurrent.system import signals
from block_recurrent.system.signals import SIGNALS, Stopped, stop_on_signal

LIMIT = 60  # seconds, on a busy machine
# The module by itself starts in no time. "stuck" is a call that Python cannot interrupt, and which
# takes far longer than the limit.
BEGINNING = f"""
import hashlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("signals", {signals.__file__!r})
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
stuck = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
print("begun", flush=True)
"""
NOTHING_TO_SAVE = "with signals.stop_on_signal(nothing_to_save=True):\n    "
SOMETHING_TO_SAVE = "with signals.stop_on_signal() as stop:\n    "
READY = 'print("ready", file=sys.stderr, flush=True)\n    '


@pytest.fixture(autouse=True)
def handled():
    """The signals that reach handlers from before, which are put back after the test."""
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def watched_by() -> tuple:
    """What the module changes of a process: handlers, the wakeup descriptor, threads, files."""
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    return handlers, descriptor, threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.fixture
def start():
    """Starts a program that uses the module; it is ready when this returns."""
    processes = []

    def start(program: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", BEGINNING + program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"},
            text=True,
        )
        processes.append(process)
        assert process.stderr and process.stderr.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_does_no_more(number, handled):
    name = signal.Signals(number).name
    with stop_on_signal() as stop:
        stop.check()
        send(number)
        assert stop.signal == name and handled == []
        with pytest.raises(Stopped, match=f"stopped by {name} at noon") as caught:
            stop.check(" at noon")
    assert (caught.value.signal, caught.value.exit_status) == (name, 128 + number)


def test_an_ignored_hangup_stays_ignored():
    """As below nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stop:
        send(signal.SIGHUP)
        assert stop.signal is None
        send(signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
def test_where_there_is_nothing_to_save_the_first_ends_a_stuck_process(number, start):
    process = start(NOTHING_TO_SAVE + READY + "stuck()")
    process.send_signal(number)
    output, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number and output == "begun\n"
    name = signal.Signals(number).name
    assert said == f"\nstopped at once by {name}: there was nothing to save\n"


TELLING = """import threading, time
def tell():
    while stop.signal is None:
        time.sleep(0.01)
    print("heard", stop.signal, flush=True)
with signals.stop_on_signal() as stop:
    threading.Thread(target=tell, daemon=True).start()
    """


@pytest.mark.parametrize("numbers", [SIGNALS, SIGNALS[::-1], 2 * SIGNALS[:1]])
def test_a_request_reaches_other_threads_and_the_second_ends_a_stuck_process(numbers, start):
    process = start(TELLING + READY + "stuck()")
    process.send_signal(numbers[0])
    assert process.stdout.readline() == "begun\n"
    assert process.stdout.readline() == f"heard {signal.Signals(numbers[0]).name}\n"
    process.send_signal(numbers[1])
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + numbers[1]
    assert "by a second signal" in said and "Traceback" not in said


def test_the_attribute_may_be_changed_meanwhile(start):
    process = start(SOMETHING_TO_SAVE + "stop.nothing_to_save = True\n    " + READY + "stuck()")
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_what_was_printed_is_not_lost(start):
    process = start(NOTHING_TO_SAVE + 'print("unfinished", end="")\n    ' + READY + "stuck()")
    process.terminate()
    assert process.communicate(timeout=LIMIT)[0] == "begun\nunfinished"


def test_a_process_whose_output_nobody_reads_ends_too(start):
    process = start(NOTHING_TO_SAVE + READY + 'while True: print("x" * 1000)')
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_a_process_whose_output_is_closed_ends_too(start):
    process = start(NOTHING_TO_SAVE + 'print("lost", end="")\n    ' + READY + "stuck()")
    process.stdout.close()
    process.stderr.close()
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    process.stdout = process.stderr = None


def test_afterwards_the_process_is_as_before(handled):
    before = watched_by()
    with stop_on_signal():
        assert all(now != then for now, then in zip(watched_by(), before, strict=True))
    assert watched_by() == before
    with pytest.raises(RuntimeError), stop_on_signal():
        send(signal.SIGTERM)
        raise RuntimeError
    assert watched_by() == before
    send(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_elsewhere_than_in_the_main_thread_it_is_an_error_that_leaves_nothing():
    before, errors = watched_by(), []

    def enter():
        try:
            with stop_on_signal():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1 and watched_by() == before


def test_the_inner_of_two_contexts_takes_a_signal_and_the_outer_the_next():
    before = watched_by()
    with stop_on_signal() as outer:
        between = watched_by()
        with stop_on_signal() as inner:
            send(signal.SIGINT)
        assert watched_by() == between
        assert (inner.signal, outer.signal) == ("SIGINT", None)
        send(signal.SIGTERM)
        assert (inner.signal, outer.signal) == ("SIGINT", "SIGTERM")
    assert watched_by() == before


def test_the_outer_context_does_not_decide_what_the_inner_does(start):
    process = start(
        NOTHING_TO_SAVE + "with signals.stop_on_signal():\n        " + READY + "    stuck()"
    )
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)


def test_one_request_knows_nothing_of_the_one_before():
    with stop_on_signal():
        send(signal.SIGINT)
    with stop_on_signal() as stop:
        assert stop.signal is None
