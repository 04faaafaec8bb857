"""Transformer-XL gives the numbers of its authors' release, for every golden case."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent.interop.transformer_xl import load_parameters, to_parameters
from block_recurrent.training.loss import model_cross_entropy
from tests.helpers import assert_close, under

GOLDEN = sorted((Path(__file__).parents[1] / "golden/transformer_xl").glob("*.npz"))


def model_config(golden: dict) -> br.TransformerXLConfig:
    return br.TransformerXLConfig(
        vocab_size=golden["V"],
        num_layers=golden["L"],
        model_size=golden["E"],
        num_heads=golden["H"],
        head_size=golden["D"],
        mlp_size=golden["M"],
        memory=golden["mem"],
        same_length=golden["same_length"],
        clamp_length=golden["clamp_len"],
    )


@jax.jit
def read(model, state, tokens, targets):
    def loss(model):
        features, after = model.features(tokens, state)
        nats, count = model_cross_entropy(model, features, targets, jnp.ones(targets.shape, bool))
        return nats / count.astype(jnp.float32), (model.logits(features), features, after)

    return jax.value_and_grad(loss, has_aux=True)(model)


def test_there_are_golden_cases():
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_segment_is_that_of_the_authors(path):
    with np.load(path) as file:
        arrays = dict(file)
    config = model_config(json.loads(str(arrays["config"])))
    model = load_parameters(under(arrays, "params/"), config)
    segments = sorted({name.split("/")[0] for name in arrays if name.startswith("seg")})
    state, outputs = model.initial_state(len(arrays["seg0/tokens"])), []
    for segment in (under(arrays, f"{name}/") for name in segments):
        tokens, targets = (jnp.asarray(segment[name], jnp.int32) for name in ("tokens", "targets"))
        (loss, (logits, features, state)), gradients = read(model, state, tokens, targets)
        assert_close((loss, logits), (segment["loss"], segment["logits"]), 2e-5)
        assert_close(to_parameters(gradients), under(segment, "grads/"), 2e-5)
        outputs.append(features)
        if not config.memory:
            continue
        filled = int(state.length[0, 0])
        for layer, memory in enumerate(state.memory):
            assert_close(memory[:, config.memory - filled :], segment[f"mems/{layer}"], 2e-5)
        newest = jnp.concatenate(outputs, axis=1)[:, -config.memory :]
        assert_close(newest, segment[f"mems/{config.num_layers}"], 2e-5)
    assert len(segments) >= 2
