"""The self-test finds the implementations that are right, and those that are not."""

import pytest

from block_recurrent.lab.benchmark import selftest
from block_recurrent.lab.benchmark.selftest import Result
from block_recurrent.model.attention import reference
from tests.helpers import layer_config

SMALL = {"window": 16, "head_size": 8, "num_states": 4}


@pytest.fixture
def small(monkeypatch):
    """The program at a small size."""
    monkeypatch.setattr(selftest, "LayerConfig", lambda dtype: layer_config(**SMALL, dtype=dtype))


def test_what_this_machine_can_compute_is_right(small, capsys):
    assert selftest.main([]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    verdicts = {(row[0], row[1]): " ".join(row[2:]) for row in rows if len(row) > 2}
    for dtype in selftest.DTYPES:
        for name in ("xla", "tiled"):
            assert verdicts[name, dtype].endswith("right")
        assert verdicts["cudnn", dtype].startswith("needs a GPU")


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
    assert output.count("WRONG") == 2
    assert "float32: 'auto' chooses 'tiled'; set model.attention = 'xla'" in output


def test_what_is_not_clearly_slower_may_stay():
    xla = Result("xla", "float32", milliseconds=10.0)
    for milliseconds, words in (10.9, "and none is faster"), (11.1, "set model.attention = 'xla'"):
        tiled = xla._replace(name="tiled", milliseconds=milliseconds)
        chosen = {"float32": "tiled"}
        assert words in selftest.describe([xla, tiled], chosen, chosen)


def test_another_choice_with_dropout_is_said():
    cudnn = Result("cudnn", "bfloat16", milliseconds=10.0)
    text = selftest.describe([cudnn], {"bfloat16": "cudnn"}, {"bfloat16": "pallas"})
    assert text.endswith("bfloat16: with dropout of attention it chooses 'pallas'")


def test_dropout_that_scales_wrongly_is_told(small, capsys, monkeypatch):
    def choose(config):
        def attend_window(*arguments, dropout_rate, dropout_key, **options):
            factor = 1.1 if dropout_rate else 1.0
            return reference.attend_window(*arguments, **options) * factor

        found = choice(config)
        changed = found._replace(attend_window=attend_window)
        return changed if config.attention == "tiled" else found

    choice = selftest.choose_attention
    monkeypatch.setattr(selftest, "choose_attention", choose)
    assert selftest.main([]) == 1
    assert capsys.readouterr().out.count("WRONG") == 2
