"""Laws of reports: process 0 receives all of them before it continues, or times out."""

import threading
import time

import pytest

from block_recurrent.parallel import processes


class Messages:
    """The coordination service for three processes that are threads of one."""

    def __init__(self):
        self.told, self.changed = {}, threading.Condition()

    def key_value_set_bytes(self, key, content):
        with self.changed:
            self.told[key] = content
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.told, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.told[key]

    def key_value_delete(self, key):
        with self.changed:
            del self.told[key]


@pytest.fixture
def messages(monkeypatch):
    """Of three processes, of which the threads of `other` are 1 and 2."""
    found, here = Messages(), threading.local()
    monkeypatch.setattr(processes, "_messages", lambda: found)
    monkeypatch.setattr(processes, "_place", lambda: (getattr(here, "index", 0), 3))
    monkeypatch.setattr(processes, "_loss_noticed", threading.Event())
    found.here = here
    return found


def other(messages, index, work, after=0.0):
    """A process that reports what comes of its work."""

    def run():
        messages.here.index = index
        time.sleep(after)
        processes.report("saving", work)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def fail(error):
    raise error


def test_all_results_come_in_the_order_of_the_processes(messages):
    other(messages, 2, lambda: "two")
    other(messages, 1, lambda: "one", after=0.1)
    assert processes.reports("saving", lambda: "zero", 10) == ["zero", "one", "two"]
    assert messages.told == {}


def test_one_process_alone_reports_to_itself():
    assert processes.reports("saving", lambda: "zero", 0) == ["zero"]
    with pytest.raises(KeyError):
        processes.reports("saving", lambda: fail(KeyError("x")), 0)


def test_all_reports_arrive_before_the_first_failure_is_raised(messages):
    done = []
    other(messages, 1, lambda: fail(OSError(28, "No space left on device")))
    other(messages, 2, lambda: done.append(2), after=0.2)
    with pytest.raises(RuntimeError, match="^process 1: No space left on device$"):
        processes.reports("saving", lambda: None, 10)
    assert done == [2]
    other(messages, 1, lambda: None)
    other(messages, 2, lambda: done.append(3), after=0.2)
    with pytest.raises(OSError, match="here"):
        processes.reports("saving", lambda: fail(OSError("here")), 10)
    assert done == [2, 3]


def test_the_error_is_that_of_the_process_that_failed_not_of_one_that_timed_out(messages):
    other(messages, 1, lambda: None)
    other(messages, 2, lambda: fail(OSError(28, "No space left on device")))
    with pytest.raises(RuntimeError, match="^process 2: No space left on device$"):
        processes.reports("saving", lambda: fail(TimeoutError("timed out")), 10)


def test_waiting_for_a_report_times_out(messages):
    other(messages, 1, lambda: None).join()
    with pytest.raises(processes.ProcessLost, match="saving/2"):
        processes.reports("saving", lambda: None, 0.1)


@pytest.mark.parametrize("work", [lambda: None, threading.Event().wait])
def test_a_loss_that_the_program_notices_ends_the_waiting(work, messages):
    """For the others, and for this process's own work, which may wait for them."""

    def notice():
        with pytest.raises(RuntimeError), processes.noticing_loss():
            raise RuntimeError("Gloo all-reduce failed: Connection reset by peer")

    threading.Timer(0.1, notice).start()
    with pytest.raises(processes.ProcessLost):
        processes.reports("saving", work, 60)
