"""The devices that are there."""

import os

import pytest

from block_recurrent.system.devices import count_cores, default_backend


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
