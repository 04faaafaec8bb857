"""Which implementation a model gets, and what is said where there is none."""

import pytest

from block_recurrent.model.attention import (
    built_for,
    choose_attention,
    cudnn,
    reference,
    tiled,
    tpu,
)
from tests.helpers import layer_config

LARGE = {"window": 128, "head_size": 64}


def chosen(platform, **changes):
    with built_for(platform):
        return choose_attention(layer_config(**changes))


def test_auto_is_the_best_that_is_possible():
    assert chosen("cpu", **LARGE) is tiled.UNROLLED
    assert chosen("gpu", **LARGE) is tiled.IN_TURN
    assert chosen("tpu", **LARGE) is tpu.COMPILED
    assert chosen("tpu", **LARGE | {"window": 96}).attend is reference.attend


def test_kernels_are_interpreted_on_a_cpu_and_nowhere_else():
    assert chosen("cpu", **LARGE, attention="pallas") is tpu.INTERPRETED
    assert chosen("tpu", **LARGE, attention="pallas") is tpu.COMPILED


def test_rows_are_laid_out_on_a_cpu_and_taken_in_turn_elsewhere():
    assert chosen("cpu", attention="tiled") is tiled.UNROLLED
    assert chosen("tpu", attention="tiled") is tiled.IN_TURN


def test_the_library_is_had_by_asking_for_it():
    rates = {"dropout": 0.1, "attention_dropout": 0.0}
    found = chosen("gpu", **LARGE, **rates, attention="cudnn", dtype="bfloat16")
    assert found.attend_window is cudnn.attend_window


@pytest.mark.parametrize(
    "platform, attention, changes, words",
    [
        ("gpu", "pallas", {}, "for TPUs .* built for a GPU"),
        ("tpu", "pallas", {"window": 96}, "window that is a multiple of 128 .* not 96"),
        ("cpu", "pallas", {"window": 4096}, "at most 2048, not 4096"),
        ("tpu", "pallas", {"head_size": 12}, "head_size that is a multiple of 8, not 12"),
        ("cpu", "cudnn", {}, "needs a GPU, but this model is built for a CPU"),
        ("gpu", "cudnn", {}, "needs dtype 'bfloat16', not 'float32'"),
        (
            "gpu",
            "cudnn",
            {"dtype": "bfloat16", "dropout": 0.1},
            "no dropout, but that of attention is 0.1 .*off.",
        ),
        ("gpu", "cudnn", {"dtype": "bfloat16", "head_size": 136}, "at most 128, not 136"),
        ("gpu", "cudnn", {"dtype": "bfloat16", "window": 7}, "even window, not 7"),
    ],
)
def test_what_is_impossible_is_a_sentence(platform, attention, changes, words):
    with pytest.raises(
        ValueError, match=f"model.attention '{attention}' .*{words}; set model.attention = "
    ):
        chosen(platform, **LARGE | changes, attention=attention)
