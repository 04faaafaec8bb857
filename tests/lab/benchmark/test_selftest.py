"""The self-test finds the implementations that are right, and those that are not."""

import functools
import itertools

import jax
import pytest

from block_recurrent.lab.benchmark import selftest
from block_recurrent.lab.benchmark.selftest import Result
from block_recurrent.model.attention import reference
from tests.helpers import layer_config

SMALL = {"window": 16, "head_size": 8, "num_states": 4}


@pytest.fixture
def small(monkeypatch):
    """The program at a small size."""
    monkeypatch.setattr(selftest, "LayerConfig", functools.partial(layer_config, **SMALL))


def test_what_this_machine_can_compute_is_right(small, capsys):
    assert selftest.main([]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    verdicts = {tuple(row[:3]): " ".join(row[3:]) for row in rows if len(row) > 3}
    for dtype, dropout in itertools.product(selftest.DTYPES, ("yes", "no")):
        for name in ("xla", "tiled"):
            assert verdicts[name, dtype, dropout].endswith("right")
        assert verdicts["cudnn", dtype, dropout].startswith("needs a GPU")


@pytest.mark.parametrize("wrong", ["value", "nan"])
def test_a_wrong_implementation_is_told(small, capsys, monkeypatch, wrong):
    def choose(config):
        found = choice(config)
        if config.attention != "tiled":
            return found
        factor = 1.1 if wrong == "value" else float("nan")
        return found._replace(attend=lambda *x: reference.attend(*x) * factor)

    choice = selftest.choose_attention
    monkeypatch.setattr(selftest, "choose_attention", choose)
    assert selftest.main([]) == 1
    output = capsys.readouterr().out
    assert output.count("WRONG") == 4
    assert (
        "float32, with dropout of attention: 'auto' chooses 'tiled'; set model.attention = 'xla'"
        in output
    )


def test_what_is_not_clearly_slower_may_stay():
    xla = Result("xla", "float32", milliseconds=10.0)
    for milliseconds, words in (10.9, "and none is faster"), (11.1, "set model.attention = 'xla'"):
        tiled = xla._replace(name="tiled", milliseconds=milliseconds)
        assert words in selftest.describe([xla, tiled], {("float32", 0.0): "tiled"})


def test_another_mask_is_reported(small, capsys, monkeypatch):
    def choose(config):
        def attend_window(*arguments, dropout_rate, dropout_key):
            key = jax.random.key(1) if dropout_rate else None
            return reference.attend_window(*arguments, dropout_rate=dropout_rate, dropout_key=key)

        found = choice(config)
        changed = found._replace(attend_window=attend_window)
        return changed if config.attention == "tiled" else found

    choice = selftest.choose_attention
    monkeypatch.setattr(selftest, "choose_attention", choose)
    assert selftest.main([]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows if row[-1:] == ["WRONG"]] == [
        ["tiled", dtype, "yes"] for dtype in selftest.DTYPES
    ]
