"""Laws of stopping politely."""

import os
import signal

import pytest

from block_recurrent.training.signals import stop_on_signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handled():
    """The signals that reach handlers from before, which are put back after the test."""
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_is_not_held_back(number, handled):
    with stop_on_signal() as stop:
        assert stop.signal is None
        send(number)
        assert stop.signal == signal.Signals(number).name
        assert handled == []
        for second in SIGNALS:
            send(second)
        assert handled == list(SIGNALS)
        assert stop.signal == signal.Signals(number).name


def test_afterwards_the_handlers_are_as_before(handled):
    before = handlers()
    with stop_on_signal():
        assert not set(handlers()) & set(before)
    assert handlers() == before
    with pytest.raises(RuntimeError), stop_on_signal():
        raise RuntimeError
    assert handlers() == before


def test_one_request_knows_nothing_of_the_one_before():
    with stop_on_signal():
        send(signal.SIGINT)
    with stop_on_signal() as stop:
        assert stop.signal is None
