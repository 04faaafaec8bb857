"""Processes that train one model together, on one machine or many: how they meet and agree.

Every process runs the same program in the same order. Process 0 decides; `decided` tells the others
what, and `together` is for what all of them have to succeed in. What threads do beside the program
is told by `report`. In a program that has joined no others these are plain calls.
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
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from block_recurrent.parallel.watch import Watch
from block_recurrent.system.files import reason

T = TypeVar("T")
JOIN_SECONDS = 300  # until a process gives up looking for the others
_RETRY_SECONDS = 0.5
UNREACHABLE, LOST = 8, 9  # exit statuses
# In messages that say that an exchange has failed; their exceptions are of several kinds.
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
    """Which processes belong together; what is None is asked of the environment.

    Attributes:
      coordinator_address: HOST:PORT of process 0.
      process_count: how many there are.
      process_index: which of them this is, from 0.
    """

    coordinator_address: str | None = None
    process_count: int | None = None
    process_index: int | None = None


def join(cluster: Cluster, seconds: float = JOIN_SECONDS) -> None:
    """Finds the other processes, before JAX looks for devices, and watches them from then on.

    SLURM, Open MPI, Cloud TPU and GKE say by themselves what `cluster` leaves open. Signals stay
    this program's own: JAX's notice of preemption would take SIGTERM for itself.

    Args:
      cluster: as far as it is known.
      seconds: how long to look for them.

    Raises:
      ClusterUnreachable: they were not found in time, or nobody says where they are.
    """
    global _watch
    jax.config.update("jax_enable_preemption_service", False)
    begin = time.monotonic()
    if cluster.coordinator_address and cluster.process_index:
        _wait_for_coordinator(cluster.coordinator_address, seconds)
    left = max(seconds - (time.monotonic() - begin), 1.0)
    missing = threading.Timer(left, _leave_unreached, [seconds])
    missing.daemon = True
    missing.start()
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=int(seconds) + 60,  # at its end JAX would end the process
        )
    except (RuntimeError, ValueError) as error:
        raise ClusterUnreachable(
            f"the other processes cannot be found ({str(error).splitlines()[0]}): say where they "
            "are with --coordinator_address=HOST:PORT, --process_count and --process_index"
        ) from error
    finally:
        missing.cancel()
    state = _coordination()
    _watch = Watch(state.process_id, state.num_processes, _messages, _leave_lost)
    _watch.start()


def _leave_unreached(seconds: float) -> None:
    sentence = f"error: not all processes were there within {seconds:.0f} s: were all started?"
    print(sentence, file=sys.stderr)
    leave(UNREACHABLE)


def _wait_for_coordinator(address: str, seconds: float) -> None:
    """Returns when something listens at an address; JAX itself would end the process."""
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


def _leave_lost(why: str) -> None:
    print(f"\nerror: {_lost(why)}", file=sys.stderr)
    leave(LOST)


def turn(number: int) -> contextlib.AbstractContextManager[None]:
    """For work that takes all processes about as long: one that stays in it alone times out.

    Args:
      number: grows from turn to turn; the same turn has the same number in all processes.
    """
    return _watch.turn(number) if _watch else contextlib.nullcontext()


def several() -> bool:
    """Whether this process has joined others."""
    return count() > 1


def count() -> int:
    """How many processes there are."""
    return _place()[1]


def index() -> int:
    """Which of them this is, from 0."""
    return _place()[0]


def is_primary() -> bool:
    """Whether this is the process that speaks and decides."""
    return index() == 0


def _place() -> tuple[int, int]:
    """This process's index, and how many there are.

    Where there is no device each speaks for itself, as one of several.
    """
    if not jax.distributed.is_initialized():
        return 0, 1
    try:
        return jax.process_index(), jax.process_count()
    except (RuntimeError, AssertionError):
        return 0, 2


def decided(decide: Callable[[], T]) -> T:
    """What `decide` returns in process 0, which alone calls it, in all processes.

    Raises:
      Exception: what `decide` raises, in all processes.
    """
    if not several():
        return decide()
    outcome = _outcome(decide) if is_primary() else None
    return _result(_broadcast(outcome))


def together(work: Callable[[], T], *, primary_first: bool = False) -> T:
    """What `work` returns, which every process calls.

    Args:
      work: to be done by each.
      primary_first: process 0 does it before the others begin, for it makes what all will use.

    Raises:
      Exception: what it raises in the first process where it fails, in all processes.
    """
    if not several():
        return work()
    if primary_first:

        def begin() -> None:  # what the work returns stays here
            work()

        decided(begin)
    outcome = _outcome(work)
    for other in _gather(None if outcome[0] else outcome):
        if other is not None:
            _result(other)
    return _result(outcome)


def report(subject: str, work: Callable[[], Any]) -> None:
    """Does work, in any thread, and tells `reports` what came of it; once for each subject."""
    content = _packed(_outcome_unless_lost(work)).tobytes()
    with contextlib.suppress(RuntimeError):  # process 0 is gone, as the next exchange will say
        _messages().key_value_set_bytes(_key(subject, index()), content)


def reports(subject: str, work: Callable[[], T], seconds: float) -> list[T]:
    """What work returned in this process, and in the others, which call `report`; in any thread.

    Args:
      subject: of the reports.
      work: this process's own.
      seconds: how long to wait for the others.

    Raises:
      Exception: what the work raised here, when all others are done.
      RuntimeError: the work failed in another process, which the message names.
      ProcessLost: another process is gone, or not done in time.
    """
    own, end = _outcome_unless_lost(work), time.monotonic() + seconds
    outcomes = [own, *(_heard(_key(subject, other), end) for other in range(1, count()))]
    # A process that waited in vain for another says less than the other itself.
    for process, (succeeded, value) in sorted(
        enumerate(outcomes), key=lambda heard: isinstance(heard[1][1], TimeoutError)
    ):
        if not succeeded and process > 0:
            raise RuntimeError(f"process {process}: {reason(value)}") from value
        _result((succeeded, value))
    return [value for _, value in outcomes]


def _heard(key: str, end: float) -> tuple[bool, Any]:
    """What a process has told, when it has."""
    while not _loss_noticed.is_set() and time.monotonic() < end:
        try:
            content = _messages().blocking_key_value_get_bytes(key, int(1000 * _RETRY_SECONDS))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            raise ProcessLost(f"nothing is heard of {key} ({reason(error)})") from error
        with contextlib.suppress(RuntimeError):
            _messages().key_value_delete(key)
        return pickle.loads(content)
    raise ProcessLost(f"nothing is heard of {key}")


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Within it, an error that says that another process is gone ends the waiting for reports."""
    try:
        yield
    except Exception as error:
        if lost(error):
            _loss_noticed.set()
        raise


def _key(subject: str, process: int) -> str:
    return f"block_recurrent/{subject}/{process}"


def _messages() -> Any:
    """The store of the coordination service; None for a process that has joined no others."""
    return _coordination().client


def _coordination() -> Any:
    """The coordination service, for which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state


def any_of(condition: bool) -> bool:
    """Whether it holds in any process."""
    return any(_gather(condition)) if several() else condition


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether work succeeded, and its result or its exception."""
    try:
        return True, work()
    except Exception as error:
        return False, error


def _outcome_unless_lost(work: Callable[[], Any]) -> tuple[bool, Any]:
    """`_outcome`, or a failure as soon as the loss of another process is noticed."""
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


def _broadcast(value: Any) -> Any:
    """A value of process 0, in all processes."""
    content = _packed(value) if is_primary() else np.zeros(0, np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(content))))
    return _unpacked(broadcast_one_to_all(content if is_primary() else np.zeros(size, np.uint8)))


def _gather(value: Any) -> list[Any]:
    """The values of all processes, by their index, in all processes."""
    content = _packed(value)
    sizes = np.asarray(process_allgather(np.int32(len(content)))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [_unpacked(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def _packed(value: Any) -> np.ndarray:
    """A value as bytes; a failure that cannot be copied becomes another with its message."""
    try:
        content = pickle.dumps(value)
        pickle.loads(content)
    except Exception:
        if not (isinstance(value, tuple) and value[0] is False):
            raise
        error = value[1]
        content = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return np.frombuffer(content, np.uint8)


def _unpacked(content: Any) -> Any:
    return pickle.loads(np.asarray(content).tobytes())


def lost(error: BaseException) -> ProcessLost | None:
    """The error as that of another process, if it says that one is gone."""
    if not several() or not _OF_OTHERS.search(str(error)):
        return None
    return _lost(str(error).splitlines()[0])


def _lost(why: str) -> ProcessLost:
    return ProcessLost(
        f"another process has ended or does not answer ({why}); the same command goes on from the "
        "newest checkpoint"
    )


def leave(status: int) -> None:
    """Ends the process at once, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
