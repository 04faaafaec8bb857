"""Laws of the watch: a process that is silent or stays behind times out, and no other does."""

import pytest

from block_recurrent.parallel.watch import PATIENCE_SECONDS, PULSE_SECONDS, Watch


class Store(dict):
    """What the coordination service keeps."""

    def __bool__(self):
        return True

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]


class Processes:
    """Three of them, with their seconds."""

    def __init__(self):
        store = Store()
        self.watches = [Watch(index, 3, lambda: store, pytest.fail) for index in range(3)]
        self.turns = [watch.turn(0) for watch in self.watches]

    def pass_seconds(self, seconds, *, frozen=(), unheard=()):
        """What each process has to say meanwhile.

        Args:
          seconds: how many.
          frozen: processes that stand still.
          unheard: processes that neither reach the store nor are reached by it.
        """
        said = [None] * 3
        for second in range(seconds):
            for index, watch in enumerate(self.watches):
                if second % PULSE_SECONDS == 0 and index not in (*frozen, *unheard):
                    watch.send()
            for index, watch in enumerate(self.watches):
                if index not in frozen:
                    said[index] = said[index] or watch.check()
        return said

    def enter(self, number, *indices):
        for index in indices:
            self.turns[index] = self.watches[index].turn(number)
            self.turns[index].__enter__()

    def leave(self, *indices):
        for index in indices:
            self.turns[index].__exit__(None, None, None)


@pytest.fixture
def processes():
    return Processes()


def test_processes_that_send_messages_never_time_out(processes):
    assert processes.pass_seconds(10 * PATIENCE_SECONDS) == [None] * 3


def test_a_frozen_process_times_out_and_is_named(processes):
    processes.pass_seconds(20)
    sentence = f"process 1 has been silent for {PATIENCE_SECONDS} s"
    said = processes.pass_seconds(PATIENCE_SECONDS + PULSE_SECONDS, frozen=[1])
    assert said == [sentence, None, sentence]


def test_a_process_that_never_sent_anything_times_out(processes):
    said = processes.pass_seconds(PATIENCE_SECONDS + 1, frozen=[2])
    assert said[0] == f"process 2 has been silent for {PATIENCE_SECONDS} s"


def test_without_the_store_it_is_process_0_that_is_gone(processes):
    processes.pass_seconds(20)
    said = processes.pass_seconds(PATIENCE_SECONDS + 1, frozen=[0], unheard=[1, 2])
    assert said[1] == said[2] == f"process 0 has been silent for {PATIENCE_SECONDS} s"


def test_no_process_times_out_if_all_are_frozen_together(processes):
    processes.pass_seconds(20)
    processes.pass_seconds(PATIENCE_SECONDS * 2, frozen=[0, 1, 2])
    assert processes.pass_seconds(20) == [None] * 3


def test_a_process_that_stays_in_a_turn_times_out_in_those_that_have_ended_it(processes):
    processes.enter(7, 0, 1, 2)
    processes.leave(0)
    said = processes.pass_seconds(PATIENCE_SECONDS - 5)
    assert said == [None] * 3
    processes.leave(2)
    sentence = f"process 1 has waited {PATIENCE_SECONDS} s longer for its data"
    assert processes.pass_seconds(15) == [sentence, None, None]
    assert processes.pass_seconds(PATIENCE_SECONDS)[2] == sentence


def test_no_process_times_out_if_all_stay_in_a_turn_or_after_it(processes):
    processes.enter(7, 0, 1, 2)
    assert processes.pass_seconds(2 * PATIENCE_SECONDS) == [None] * 3
    processes.leave(0, 1, 2)
    processes.enter(8, 0, 1)
    processes.leave(0)
    processes.leave(1)
    assert processes.pass_seconds(2 * PATIENCE_SECONDS) == [None] * 3


def test_a_process_that_is_slow_in_every_turn_does_not_time_out(processes):
    for number in range(4):
        processes.enter(number, 0, 1, 2)
        processes.leave(0, 2)
        assert processes.pass_seconds(PATIENCE_SECONDS - 5) == [None] * 3
        processes.leave(1)
