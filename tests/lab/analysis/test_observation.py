"""Laws of what is observed of one block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.lab.analysis.observation import (
    mean_similarity,
    recurrent_inputs,
    relative_change,
    similarity_to,
)
from block_recurrent.model.attention import reference
from block_recurrent.model.state import KeysValues, concatenate_windows, take
from tests.helpers import assert_close, random_like, random_tokens, read
from tests.lab.analysis.corpora import model_of

STATES, OTHERS = random_like([jnp.zeros((2, 3, 5))] * 2)


def test_probabilities_are_those_of_attention():
    queries, keys, values = random_like([jnp.zeros((2, n, 2, 4)) for n in (5, 3, 3)])
    p = reference.probabilities(jnp.einsum("bqhd,bshd->bhqs", queries, keys))
    assert_close(p.sum(-1), jnp.ones((2, 2, 5)))
    seen = jnp.einsum("bhqs,bshd->bqhd", p, values)
    assert_close(seen, reference.attend(queries, KeysValues(keys, values)))


def test_change_and_similarities_are_what_they_are_called():
    a, b = np.asarray(STATES, np.float64), np.asarray(OTHERS, np.float64)
    for row in range(2):
        change = np.linalg.norm(b[row] - a[row]) / np.linalg.norm(a[row])
        assert relative_change(STATES, OTHERS)[row] == pytest.approx(change, rel=1e-5)
        unit_a, unit_b = (x[row] / np.linalg.norm(x[row], axis=1)[:, None] for x in (a, b))
        pairs = [unit_a[i] @ unit_a[j] for i in range(3) for j in range(3) if i != j]
        assert mean_similarity(STATES)[row] == pytest.approx(np.mean(pairs), abs=1e-5)
        itself = np.mean([unit_a[i] @ unit_b[i] for i in range(3)])
        assert similarity_to(STATES, OTHERS)[row] == pytest.approx(itself, abs=1e-5)
    assert mean_similarity(STATES[:, :1]).tolist() == [1, 1]


@pytest.mark.parametrize(
    "layers, changes",
    [((0, 2), {}), ((1,), {"feedback": True}), ((0, 2), {"feedback": True})],
    ids=str,
)
def test_inputs_of_recurrent_layers_are_those_of_the_model(layers, changes):
    model = model_of(*layers, **changes)
    tokens = random_tokens(2, 4)
    _, before = read(model, random_tokens(2, 4, seed=1), model.initial_state(2))
    _, after = read(model, tokens, before)
    inputs = jax.jit(recurrent_inputs)(model, tokens, before)
    assert len(inputs) == len(layers)
    for number, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        cell, states = model.stack.cells[number], before.recurrent[number]
        own = take(after.cache, layer)
        assert_close(cell.token_layer.project(x).context, own)
        context = concatenate_windows(take(before.cache, layer), own)
        moved = cell.update(states, cell.project(states), context)
        assert_close(moved, after.recurrent[number])
