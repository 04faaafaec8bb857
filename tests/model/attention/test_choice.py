"""Which implementation a model gets, and what is said where there is none."""

import jax
import pytest

from block_recurrent.model.attention import (
    built_for,
    choose_attention,
    cudnn,
    describe_attention,
    hopper,
    reference,
    tiled,
    tpu,
)
from tests.helpers import layer_config

LARGE = {"window": 128, "head_size": 64}


def chosen(platform, kind=None, **changes):
    with built_for(platform, kind):
        return choose_attention(layer_config(**changes))


def test_auto_is_the_best_that_is_possible():
    assert chosen("cpu", **LARGE) is tiled.ON_CPU
    assert chosen("gpu", **LARGE) is tiled.ON_GPU
    assert chosen("tpu", **LARGE) is tpu.COMPILED
    assert chosen("tpu", **LARGE | {"window": 96}).attend is reference.attend


def test_kernels_are_interpreted_on_a_cpu_and_nowhere_else():
    assert chosen("cpu", **LARGE, attention="pallas") is tpu.INTERPRETED
    assert chosen("tpu", **LARGE, attention="pallas") is tpu.COMPILED


def test_tiles_are_those_of_the_platform():
    assert chosen("cpu", attention="tiled") is tiled.ON_CPU
    assert chosen("tpu", attention="tiled") is tiled.ON_GPU


LIBRARY = LARGE | {"dropout": 0.1, "attention_dropout": 0.0, "dtype": "bfloat16"}


@pytest.mark.parametrize("attention", ["auto", "cudnn"])
def test_a_gpu_takes_the_library_where_it_suits(attention):
    assert chosen("gpu", **LIBRARY, attention=attention).attend_window is cudnn.attend_window
    assert chosen("cpu", **LIBRARY) is tiled.ON_CPU


@pytest.mark.parametrize("kind, suits", [("7.5", False), ("9.0", True), ("gfx942", False)])
def test_the_library_needs_a_gpu_of_its_maker(kind, suits, monkeypatch):
    found = chosen("gpu", kind, **LIBRARY)
    assert found is (cudnn.ATTENTION if suits else tiled.ON_GPU)
    device = type("Device", (), {"compute_capability": kind, "device_kind": "NVIDIA GPU"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_attention(layer_config(**LIBRARY)) is found


@pytest.mark.parametrize("kind, suits", [("8.0", False), ("9.0", True), ("10.0", False)])
def test_a_hopper_gpu_takes_our_own_kernels_where_probabilities_are_dropped(kind, suits):
    dropped = LIBRARY | {"attention_dropout": 0.05}
    expected = hopper.ATTENTION if suits else tiled.ON_GPU
    assert chosen("gpu", kind, **dropped) is expected
    assert chosen("gpu", kind, **dropped | {"window": 192}) is tiled.ON_GPU


@pytest.mark.parametrize(
    ("kind", "dtype", "window", "states", "suits"),
    [
        ("TPU v4", "bfloat16", 1024, 1024, True),
        ("TPU v4", "bfloat16", 2048, 512, False),
        ("TPU v4", "bfloat16", 512, 2048, False),
        ("TPU v4", "float32", 1024, 512, False),
        ("TPU v3", "float32", 512, 512, True),
        ("TPU v3", "bfloat16", 512, 512, False),
        ("TPU v5 lite", "float32", 2048, 4096, True),
        ("TPU7x", "bfloat16", 2048, 512, True),
    ],
)
def test_a_chip_with_little_fast_memory_takes_what_fits(
    kind, dtype, window, states, suits, monkeypatch
):
    sizes = LARGE | {"dtype": dtype, "window": window, "num_states": states}
    found = chosen("tpu", kind, **sizes)
    assert found is tpu.COMPILED if suits else found.attend is reference.attend
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"device_kind": kind})])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose_attention(layer_config(**sizes)) == found


def test_what_is_chosen_is_described_with_the_reason():
    def described(platform, kind=None, **changes):
        with built_for(platform, kind):
            return describe_attention(layer_config(**changes))

    assert described("cpu") == "tiled"
    assert described("gpu", **LIBRARY) == "cudnn"
    dropped = LIBRARY | {"attention_dropout": 0.05}
    assert described("gpu", "9.0", **dropped).startswith("pallas; cudnn has no dropout, but that")
    words = described("gpu", "8.0", **dropped)
    assert words.startswith("tiled; cudnn has no dropout, but that of attention is 0.05")
    assert words.endswith("; pallas needs an NVIDIA GPU with compute capability 9.0, not 8.0")
    words = described("tpu", "TPU v3", **LARGE, dtype="bfloat16", num_states=512)
    assert words.startswith("xla; pallas on a TPU v3 needs a window and num_states of at most 512")
    assert described("tpu", **LARGE | {"window": 96}).startswith("xla; pallas needs a window")
    assert described("tpu", **LARGE).startswith("pallas; no GPU or TPU has run these kernels yet")
    assert described("gpu", **LIBRARY, attention="xla") == "xla"


@pytest.mark.parametrize(
    "platform, attention, changes, words",
    [
        ("gpu", "pallas", {}, "needs dtype 'bfloat16', not 'float32'"),
        ("metal", "pallas", {}, "for TPUs and Hopper GPUs, but this model is built for 'metal'"),
        ("gpu", "pallas", LIBRARY | {"window": 64}, "window that is a multiple of 128, not 64"),
        ("gpu", "pallas", LIBRARY | {"head_size": 96}, "head_size of 64 or 128, not 96"),
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
