"""Processes that train one model together, on one machine or many: how they meet and agree.

Every process runs the same program in the same order. `decided` gives all of them what process 0
has decided. `together` runs work that has to succeed in all of them. Threads beside the program use
`report` and `reports`. In a program that has joined no other processes these are plain calls.
"""

import contextlib
import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from block_recurrent.parallel.watch import Watch
from block_recurrent.system.files import reason

T = TypeVar("T")
JOIN_SECONDS = 300  # until the search for the other processes times out
_RETRY_SECONDS = 0.5
_REPORTS = "block_recurrent/"
_PARTING = "block_recurrent/parting/"
_PARTING_SECONDS, _DAY_SECONDS = 20, 86_400  # that process 0 waits for the others, and they for it
_EXIT_SECONDS = 1.0  # from a process's last message to its end, on a busy machine
UNREACHABLE, LOST = 8, 9  # exit statuses
# Parts of messages of errors that mean that another process has ended. Their types differ.
_OF_OTHERS = re.compile(
    "Gloo|NCCL|coordination service|heartbeat|Connection (reset|refused|closed)|Socket closed"
)
_loss_noticed = threading.Event()
_watch: Watch | None = None


class ClusterUnreachable(RuntimeError):
    """The other processes could not be found."""


class ProcessLost(RuntimeError):
    """Another process has ended or does not answer."""


class Cluster(NamedTuple):
    """Which processes belong together. The environment provides the values that are None.

    Attributes:
      coordinator_address: HOST:PORT of process 0.
      process_count: how many processes there are.
      process_index: index of this process, from 0.
    """

    coordinator_address: str | None = None
    process_count: int | None = None
    process_index: int | None = None


def join(cluster: Cluster, seconds: float = JOIN_SECONDS) -> None:
    """Finds the other processes, and watches them from then on. Call it before JAX uses devices.

    SLURM, Open MPI, Cloud TPU and GKE provide the values that `cluster` leaves open. JAX's
    preemption service is turned off, because it would take SIGTERM from this program.

    Args:
      cluster: the values that are known.
      seconds: until the search times out.

    Raises:
      ClusterUnreachable: it timed out, or the addresses are unknown.
    """
    global _watch
    jax.config.update("jax_enable_preemption_service", False)
    begin = time.monotonic()
    if cluster.coordinator_address and cluster.process_index:
        _wait_for_coordinator(cluster.coordinator_address, seconds)
    left = max(seconds - (time.monotonic() - begin), 1.0)
    missing = f"error: not all processes were there within {seconds:.0f} s: were all started?"
    timer = threading.Timer(left, leave, [UNREACHABLE, missing])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=int(seconds) + 60,  # then JAX would abort the process
        )
    except (RuntimeError, ValueError) as error:
        raise ClusterUnreachable(
            f"the other processes cannot be found ({str(error).splitlines()[0]}): say where they "
            "are with --coordinator_address=HOST:PORT, --process_count and --process_index"
        ) from error
    finally:
        timer.cancel()
    state = _coordination()
    _watch = Watch(
        state.process_id,
        state.num_processes,
        _messages,
        lambda why: leave(LOST, f"\nerror: {_lost(why)}"),
    )
    _watch.start()


def _wait_for_coordinator(address: str, seconds: float) -> None:
    """Returns when an address accepts connections. Without this, JAX would abort the process."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > end or isinstance(error, ValueError):
                raise ClusterUnreachable(
                    f"process 0 does not answer at {address!r} within {seconds:.0f} s ({error}): "
                    "is it running, and can it be reached from here?"
                ) from error
        time.sleep(_RETRY_SECONDS)


def leave(status: int, message: str = "") -> None:
    """Ends the process at once, after a last message, without waiting for the others."""
    print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def part(status: int) -> None:
    """Ends the process when the others have come to their end, too.

    Process 0 is the last, because it runs the service that JAX aborts a process without.
    """
    messages = _messages()
    with contextlib.suppress(RuntimeError):  # another process has ended before
        if is_primary():
            messages.key_value_set(f"{_PARTING}0", "")
            for other in range(1, count()):
                messages.blocking_key_value_get(f"{_PARTING}{other}", 1000 * _PARTING_SECONDS)
            time.sleep(_EXIT_SECONDS)
        else:
            messages.blocking_key_value_get(f"{_PARTING}0", 1000 * _DAY_SECONDS)
            messages.key_value_set(f"{_PARTING}{index()}", "")
    leave(status)


def turn(number: int) -> contextlib.AbstractContextManager[None]:
    """A context for work that takes equally long everywhere, as described at `Watch.turn`."""
    return _watch.turn(number) if _watch else contextlib.nullcontext()


def several() -> bool:
    """Whether this process has joined others."""
    return count() > 1


def count() -> int:
    """The number of processes."""
    return _place()[1]


def index() -> int:
    """The index of this process, from 0."""
    return _place()[0]


def is_primary() -> bool:
    """Whether this is process 0, which decides and writes to the screen."""
    return index() == 0


def _place() -> tuple[int, int]:
    """The index of this process, and the number of processes.

    If JAX finds no device, each process counts as the first of several, so that it reports that.
    """
    if not jax.distributed.is_initialized():
        return 0, 1
    try:
        return jax.process_index(), jax.process_count()
    except (RuntimeError, AssertionError):
        return 0, 2


def decided(decide: Callable[[], T]) -> T:
    """Calls `decide` in process 0 alone, and returns its result in all processes.

    Raises:
      Exception: what `decide` raises, in all processes.
    """
    if not several():
        return decide()
    return _result(_gather(_outcome(decide) if is_primary() else None)[0])


def together(work: Callable[[], T], *, primary_first: bool = False) -> T:
    """Calls `work` in every process, and returns each process's own result.

    Args:
      work: has to succeed in all processes.
      primary_first: process 0 does it first, because the others use what it makes.

    Raises:
      Exception: that of the first process in which `work` fails, in all processes.
    """
    if not several():
        return work()
    if primary_first:

        def begin() -> None:  # does not send the result to the others
            work()

        decided(begin)
    outcome = _outcome(work)
    for other in _gather(None if outcome[0] else outcome):
        if other is not None:
            _result(other)
    return _result(outcome)


def any_of(condition: bool) -> bool:
    """Whether a condition holds in any process."""
    return any(_gather(condition)) if several() else condition


def report(subject: str, work: Callable[[], Any]) -> None:
    """Does work in any thread, and sends its outcome to `reports`; once for each subject."""
    content = _packed(_outcome_unless_lost(work))
    with contextlib.suppress(RuntimeError):  # process 0 has ended; the next exchange will fail
        _messages().key_value_set_bytes(f"{_REPORTS}{subject}/{index()}", content)


def reports(subject: str, work: Callable[[], T], seconds: float) -> list[T]:
    """The results of work in process 0, which calls this, and in the others, which call `report`.

    Args:
      subject: of the reports.
      work: this process's own.
      seconds: until waiting for the others times out.

    Raises:
      Exception: what the work raised here, when all others are done.
      RuntimeError: the work failed in another process, which the message names.
      ProcessLost: another process has ended or timed out.
    """
    own, end = _outcome_unless_lost(work), time.monotonic() + seconds
    keys = [f"{_REPORTS}{subject}/{other}" for other in range(1, count())]
    outcomes = [own, *(_receive(key, end) for key in keys)]
    # If a process failed and others timed out waiting for it, its own error says more.
    for process, (succeeded, value) in sorted(
        enumerate(outcomes), key=lambda received: isinstance(received[1][1], TimeoutError)
    ):
        if not succeeded and process > 0:
            raise RuntimeError(f"process {process}: {reason(value)}") from value
        _result((succeeded, value))
    return [value for _, value in outcomes]


def _receive(key: str, end: float) -> tuple[bool, Any]:
    """Waits for the outcome that another process reports."""
    while not _loss_noticed.is_set() and time.monotonic() < end:
        try:
            content = _messages().blocking_key_value_get_bytes(key, int(1000 * _RETRY_SECONDS))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            raise ProcessLost(f"no report {key} arrived ({reason(error)})") from error
        with contextlib.suppress(RuntimeError):
            _messages().key_value_delete(key)
        return pickle.loads(content)
    raise ProcessLost(f"no report {key} arrived")


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Within the context, an error that means that a process has ended stops `reports` waiting."""
    try:
        yield
    except Exception as error:
        if lost(error):
            _loss_noticed.set()
        raise


def lost(error: BaseException) -> ProcessLost | None:
    """The error as a ProcessLost, if its message means that another process has ended."""
    if not several() or not _OF_OTHERS.search(str(error)):
        return None
    return _lost(str(error).splitlines()[0])


def _lost(why: str) -> ProcessLost:
    return ProcessLost(
        f"another process has ended or does not answer ({why}); the same command continues from "
        "the newest checkpoint"
    )


def _messages() -> Any:
    """The key-value store of the coordination service; None in a process without others."""
    return _coordination().client


def _coordination() -> Any:
    from jax._src import distributed  # it has no public name

    return distributed.global_state


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether work succeeded, and its result or its exception."""
    try:
        return True, work()
    except Exception as error:
        return False, error


def _outcome_unless_lost(work: Callable[[], Any]) -> tuple[bool, Any]:
    """`_outcome`, or a failure as soon as another process is known to have ended."""
    if not several():
        return _outcome(work)
    outcomes: list[tuple[bool, Any]] = []
    thread = threading.Thread(target=lambda: outcomes.append(_outcome(work)), daemon=True)
    thread.start()
    while thread.is_alive() and not _loss_noticed.is_set():
        thread.join(_RETRY_SECONDS)
    return outcomes[0] if outcomes else (False, ProcessLost("another process has ended"))


def _result(outcome: tuple[bool, Any]) -> Any:
    succeeded, value = outcome
    if not succeeded:
        raise value
    return value


def _gather(value: Any) -> list[Any]:
    """The values of all processes, by their index, in all processes."""
    content = np.frombuffer(_packed(value), np.uint8)
    sizes = np.asarray(process_allgather(np.int32(len(content)))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _packed(value: Any) -> bytes:
    """A value as bytes. An exception that cannot be pickled becomes one with the same message."""
    try:
        content = pickle.dumps(value)
        pickle.loads(content)
        return content
    except Exception:
        if not (isinstance(value, tuple) and value[0] is False):
            raise
        error = value[1]
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
