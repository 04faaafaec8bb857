"""What the tests of long runs share."""

import pytest

from tests.quick_runs import Steps


@pytest.fixture
def steps(monkeypatch):
    """Training steps that compute nothing, see `Steps`."""
    return Steps(monkeypatch)
