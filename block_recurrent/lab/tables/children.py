"""Programs that run side by side, each in a process of its own, and the CPU cores for them."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from block_recurrent.system.signals import StopRequest

PARENT = "BLOCK_RECURRENT_PARENT"  # environment variable: the process that a child stops with
POLL_SECONDS = 0.2
Lines = queue.SimpleQueue[tuple[str, str | None]]  # a child's name, and a line or None at the end


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    stop: StopRequest,
    hear: Callable[[str, str], object],
) -> Iterator[tuple[str, int]]:
    """Runs programs, some at once, and yields the name and the exit status of each as it ends.

    The status is negative if a signal has ended it.

    After a stop request no program starts, and those that run receive the signal. Each has a
    session of its own, so that a signal from the terminal reaches it only once, through this
    process. If the iterator is closed before its end, the programs receive SIGTERM, and this
    process waits for them.

    Args:
      commands: by name, in the order in which they start.
      at_once: how many run at a time.
      stop: asked to stop.
      hear: called with a child's name and each line that it writes.
    """
    waiting, running = list(commands), {}
    lines: Lines = queue.SimpleQueue()
    told = False
    try:
        while running or (waiting and stop.signal is None):
            while waiting and len(running) < at_once and stop.signal is None:
                name = waiting.pop(0)
                running[name] = _start(name, commands[name], lines)
            if stop.signal is not None and not told:
                told = True
                for child in running.values():
                    child.send_signal(signal.Signals[stop.signal])
            try:
                name, text = lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if text is None:
                yield name, running.pop(name).wait()
            else:
                hear(name, text)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()


def _start(name: str, command: Sequence[str], lines: Lines) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {PARENT: str(os.getpid())},
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert child.stdout is not None
        with child.stdout as output:
            for text in output:
                lines.put((name, text.rstrip("\n")))
        lines.put((name, None))

    threading.Thread(target=read, daemon=True, name=name).start()
    return child


def stop_with_parent() -> None:
    """If this process is a child, sends it SIGTERM when its parent has ended."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def use_one_core() -> None:
    """Makes XLA compute on one core of a CPU, which is fastest for small models.

    Call it before JAX starts. It does not change how other devices are used.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def count_cores() -> int:
    """CPU cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def default_backend() -> str:
    """The kind of device that JAX uses by default, such as "cpu".

    A process of its own asks JAX. If this process did, it would keep the accelerator from others.
    """
    code = "import jax; print(jax.default_backend())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return asked.stdout.strip()
