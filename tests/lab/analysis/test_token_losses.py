"""Laws of the losses of tokens, and of the bootstrap over documents."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from block_recurrent.config import DataConfig, ExperimentConfig, TrainingConfig
from block_recurrent.lab.analysis import token_losses
from block_recurrent.lab.analysis.token_losses import (
    Reach,
    estimate,
    nats_of,
    position_edges,
    reach_of,
    sums_by_position,
)
from block_recurrent.training.evaluation import evaluate
from tests.lab.analysis.corpora import TEXTS, corpus_of, model_of

CORPUS = corpus_of(*TEXTS)


def losses_of(model, **options):
    options = {"lanes": 2, "segment_length": 8} | options
    return token_losses.token_losses(model, CORPUS, **options)


@pytest.mark.parametrize("layers, clear", [((), False), ((1,), False), ((1,), True)])
def test_their_sum_is_that_of_evaluation(layers, clear):
    model = model_of(*layers)
    config = ExperimentConfig(
        model=model.config,
        data=DataConfig(batch_size=2, segment_length=8),
        training=TrainingConfig(clear_states=clear),
    )
    expected = evaluate(config, model, CORPUS)
    found = losses_of(model, clear_states=clear)
    assert [len(x) for x in found] == [CORPUS.length(index) for index in range(3)]
    assert sum(x.sum() for x in found) == pytest.approx(expected.nats, rel=1e-6)


def test_they_depend_on_neither_lanes_nor_segments():
    model = model_of(1)
    shares = []
    expected = losses_of(model)
    other = losses_of(model, lanes=3, segment_length=4, progress=shares.append)
    for one, two in zip(expected, other, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert shares == sorted(shares) and shares[-1] == 1


def test_they_are_those_of_the_logits_also_piece_by_piece(monkeypatch):
    model = model_of()
    tokens = np.arange(16).reshape(2, 8)
    targets = tokens[::-1] + 1
    features, _ = model.features(tokens, model.initial_state(2))
    log_p = jax.nn.log_softmax(model.logits(features))
    expected = -np.take_along_axis(np.asarray(log_p), targets[..., None], -1)[..., 0]
    for most in (2**26, 2 * 2 * 256, 1):  # all positions, two, or one at a time
        monkeypatch.setattr(token_losses, "LOGITS_AT_ONCE", most)
        np.testing.assert_allclose(nats_of(model, features, targets), expected, rtol=1e-5)


def test_positions_are_summed_between_edges():
    edges = position_edges(9, first=2)
    assert edges.tolist() == [0, 2, 4, 8, 16]
    assert position_edges(1).tolist() == [0, 64] and position_edges(65).tolist() == [0, 64, 128]
    sums, counts = sums_by_position([np.arange(9.0), np.ones(3)], edges)
    assert sums.tolist() == [[1, 5, 22, 8], [2, 1, 0, 0]]
    assert counts.tolist() == [[2, 2, 4, 1], [2, 1, 0, 0]]


def test_reach_is_that_of_all_windows_and_nothing_without_a_window():
    assert reach_of(model_of().config) == Reach(4, 12)
    assert reach_of(SimpleNamespace(vocab_size=256, num_layers=2)) == Reach(0, 0)


def test_equal_documents_leave_no_doubt():
    found = estimate(np.full(5, 6.0), np.full(5, 3.0))
    assert found.mean == found.low == found.high == 2.0


def test_the_mean_is_over_tokens():
    assert estimate(np.array([1.0, 30.0]), np.array([1.0, 3.0])).mean == 31 / 4


def test_the_interval_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    found = estimate(values * 10, np.full(400, 10.0))
    low, high = values.mean() + np.array([-1.96, 1.96]) * values.std() / 20
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.03)


def test_what_few_documents_have_has_no_interval():
    sums, counts = np.array([[4.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), np.array([[2, 1, 0], [2, 0, 0]])
    found = estimate(sums, counts)
    np.testing.assert_array_equal(found.mean, [1.5, 2.0, np.nan])
    np.testing.assert_array_equal(np.isnan(found.low), [False, True, True])
    assert np.isnan(estimate(sums[:1], counts[:1]).high).all()
