"""Laws of what is observed of the recurrent states, over documents and in one block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.lab.analysis.states import (
    LAGS,
    effective_number,
    mean_similarity,
    observe_states,
    recurrent_inputs,
    relative_change,
    similarity_to,
)
from block_recurrent.model.attention import reference
from block_recurrent.model.state import KeysValues, concatenate_windows, take
from tests.helpers import assert_close, assert_equal, random_like, random_tokens, read
from tests.lab.analysis.corpora import TEXTS, corpus_of, model_of

CORPUS = corpus_of(*TEXTS)
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
    [((1,), {}), ((0, 2), {"feedback": True})],
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


def test_effective_number_counts_equal_shares():
    shares = np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(effective_number(shares), [4, 2, 1])


@pytest.mark.parametrize("gate, wiring", [("fixed", "skip"), ("lstm", "dual")])
def test_what_is_observed_is_within_its_limits(gate, wiring):
    model = model_of(1, gate=gate, wiring=wiring)
    (found,) = observe_states(model, CORPUS, lanes=2)
    blocks = sum(CORPUS.length(index) // 4 for index in range(3))
    assert found.position.shape == found.change.shape == found.similarity.shape == (blocks,)
    initial = np.asarray(model.initial_state(1).recurrent)
    first = found.size[found.position == 0]
    np.testing.assert_allclose(first, np.sqrt(np.square(initial).mean()), rtol=1e-5)
    assert sorted(set(found.position)) == list(range(0, 4 * (CORPUS.length(2) // 4), 4))
    assert found.kept.shape == found.added.shape == (1 + (wiring == "dual"), 12)
    np.testing.assert_allclose(found.attention.sum(-1), 1, rtol=1e-5)
    assert (found.effective <= found.used + 1e-5).all() and (found.effective >= 1).all()
    assert (found.used <= 3 + 1e-5).all()
    if (gate, wiring) == ("fixed", "skip"):
        bias = model.stack.cells[0].wiring.gate.bias[...]
        np.testing.assert_allclose(found.kept[0], 1 / (1 + np.exp(-bias)), rtol=1e-5)
    if gate == "fixed":
        np.testing.assert_allclose(found.kept + found.added, 1, rtol=1e-5)
    with_pairs = np.array(LAGS) < CORPUS.length(2) // 4
    np.testing.assert_array_equal(np.isfinite(found.later), with_pairs)


def test_states_that_are_kept_neither_change_nor_turn():
    model = model_of(1)
    gate = model.stack.cells[0].wiring.gate
    bias = gate.bias[...]
    try:
        gate.bias[...] = jnp.full(12, 100.0)
        (found,) = observe_states(model, CORPUS, lanes=3)
    finally:
        gate.bias[...] = bias
    assert_equal(found.change, np.zeros_like(found.change))
    np.testing.assert_allclose(found.later[:3], 1, rtol=1e-6)
    np.testing.assert_allclose(found.kept, 1)
    np.testing.assert_allclose(found.added, 0, atol=1e-6)
