"""Laws of what is observed of the recurrent states."""

import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.lab.analysis.states import LAGS, effective_number, observe_states
from tests.helpers import assert_equal
from tests.lab.analysis.corpora import TEXTS, corpus_of, model_of

CORPUS = corpus_of(*TEXTS)


def test_effective_number_counts_equal_shares():
    shares = np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(effective_number(shares), [4, 2, 1])


@pytest.mark.parametrize("wiring", ["skip", "dual"])
@pytest.mark.parametrize("gate", ["fixed", "lstm"])
def test_what_is_observed_is_within_its_limits(gate, wiring):
    model = model_of(1, gate=gate, wiring=wiring)
    (found,) = observe_states(model, CORPUS, lanes=2)
    blocks = sum(CORPUS.length(index) // 4 for index in range(3))
    assert found.position.shape == found.change.shape == found.similarity.shape == (blocks,)
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
    assert found.lags == LAGS
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
