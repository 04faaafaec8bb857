"""The model gives the numbers of the authors' released code, for every golden case."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent.interop.meliad import load_parameters, to_parameters
from tests.helpers import assert_close, read_with_gradients, under

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def model_config(golden: dict) -> br.ModelConfig:
    wiring = "single" if golden["single"] else "skip" if golden["skip"] else "dual"
    return br.ModelConfig(
        vocab_size=golden["V"],
        num_layers=golden["NL"],
        model_size=golden["E"],
        num_heads=golden["H"],
        head_size=golden["D"],
        mlp_size=golden["M"],
        window=golden["W"],
        num_states=golden["S"],
        gate="lstm" if golden["gate"] == "lstm" else "fixed",
        wiring=wiring,
        recurrent_layers=tuple(golden["rec"]),
        feedback=golden["feedback"],
        positions=golden["pos"],
    )


def test_there_are_golden_cases():
    assert len(GOLDEN) == 12


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_two_segments_are_those_of_the_authors(path):
    with np.load(path) as file:
        arrays = dict(file)
    config = model_config(json.loads(str(arrays["config"])))
    model = load_parameters(under(arrays, "params/"), config)
    state = model.initial_state(len(arrays["seg0/tokens"]))
    for segment in (under(arrays, "seg0/"), under(arrays, "seg1/")):
        tokens, start = jnp.asarray(segment["tokens"]), jnp.asarray(segment["start_of_sequence"])
        loss, (logits, state), (gradients, _) = read_with_gradients(model, tokens, state, start)
        assert_close((loss, logits), (segment["loss"], segment["logits"]))
        assert_close(to_parameters(gradients), under(segment, "grads/"), 2e-5)
        for name, gradient in to_parameters(gradients).items():
            assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), name
        assert_state(config, state, under(segment, "state/"))


def assert_state(config: br.ModelConfig, state: br.ModelState, golden: dict) -> None:
    recurrent = iter(state.recurrent)
    for layer in range(config.num_layers):
        expected = under(golden, f"transformer{layer}/")
        assert_close(state.cache.keys[layer], expected.pop("previous_keys_test"))
        assert_close(state.cache.values[layer], expected.pop("previous_values_test"))
        if layer in config.recurrent_indices:
            assert_close(next(recurrent), expected.pop("recurrent_state_test"))
        assert not expected
