"""Laws of the length of the context."""

import numpy as np
import pytest

from block_recurrent.lab.analysis.context_length import (
    Sample,
    context_gains,
    context_lengths,
    context_losses,
    sample_positions,
)
from tests.helpers import read
from tests.lab.analysis.corpora import corpus_of, model_of

TEXT = "all happy families are alike; every unhappy family is unhappy in its own way."
CORPUS = corpus_of(TEXT, TEXT[5:30])
SAMPLE = Sample(np.array([0, 0, 1]), np.array([40, 76, 24]))


def losses_of(model, lengths, lanes=2, **options):
    options = {"segment_length": 8, "lanes": lanes} | options
    return context_losses(model, CORPUS, SAMPLE, lengths, **options).nats


@pytest.mark.parametrize("layers", [(), (1,)], ids=["slide", "recurrent"])
def test_exactly_the_tokens_before_are_read(layers):
    model, lengths = model_of(*layers), [3, 6, 12, 24]
    found = losses_of(model, lengths)
    assert found.shape == (4, 3)
    for row, context in enumerate(lengths):
        for column, (document, position) in enumerate(zip(*SAMPLE, strict=True)):
            begin = CORPUS.span(document)[0] + position
            tokens = np.zeros((1, 24), np.int32)
            tokens[0, :context] = CORPUS.tokens[begin - context : begin]
            logits = np.asarray(read(model, tokens, model.initial_state(1))[0][0, context - 1])
            expected = np.log(np.exp(logits).sum()) - logits[CORPUS.tokens[begin]]
            assert found[row, column] == pytest.approx(expected, abs=2e-5)


def test_what_is_remembered_is_the_distance_of_two_predictions():
    model = model_of(1)
    found = context_losses(model, CORPUS, SAMPLE, [6, 12, 24], segment_length=8, lanes=2)
    for column, (document, position) in enumerate(zip(*SAMPLE, strict=True)):
        end, p = CORPUS.span(document)[0] + position, []
        for context in (6, 12, 24):
            tokens = np.zeros((1, 24), np.int32)
            tokens[0, :context] = CORPUS.tokens[end - context : end]
            logits = np.asarray(read(model, tokens, model.initial_state(1))[0][0, context - 1])
            p.append(np.exp(logits) / np.exp(logits).sum())
        distances = [np.abs(own - p[-1]).sum() / 2 for own in p]
        np.testing.assert_allclose(found.remembrance[:, column], distances, atol=1e-5)
    assert found.remembrance[0].min() > 1e-3 and (found.remembrance[-1] == 0).all()


def test_neither_lanes_nor_segments_matter():
    model = model_of(1)
    expected = losses_of(model, [6, 12])
    for options in ({"lanes": 3}, {"segment_length": 4}, {"lanes": 5, "segment_length": 12}):
        np.testing.assert_allclose(losses_of(model, [6, 12], **options), expected, atol=2e-5)


def test_without_recurrence_nothing_comes_from_beyond_all_windows():
    # Three layers of 4; a token sees those before its own position, hence the one more.
    losses = losses_of(model_of(), [6, 13, 24])
    np.testing.assert_allclose(losses[1], losses[2], atol=2e-5)
    assert np.abs(losses[0] - losses[1]).min() > 1e-4


def test_lengths_double_as_far_as_there_is_text():
    assert context_lengths(CORPUS, 8, 1000) == [8, 16, 32, 64]
    assert context_lengths(CORPUS, 8, 31) == [8, 16]
    assert context_lengths(CORPUS, 80, 1000) == []


def test_sampled_positions_have_their_context_and_do_not_repeat():
    sample = sample_positions(CORPUS, 20, 1000)
    pairs = set(zip(*(part.tolist() for part in sample), strict=True))
    expected = {(0, n) for n in range(20, len(TEXT))} | {(1, n) for n in range(20, 25)}
    assert pairs == expected and len(sample.document) == len(expected)
    assert len(sample_positions(CORPUS, 20, 7).document) == 7


def test_gains_and_lengths_of_known_losses():
    # The first model gets a nat below the best short context from 2 -> 4 and nothing later.
    first, second = [4.0, 2.0, 2.0], [3.0, 3.0, 3.0]
    losses = np.array([first, second])[..., None] + np.zeros(10)
    gains, recl = context_gains(losses, [2, 4, 8])
    np.testing.assert_allclose(gains, [[1 - np.exp(-1), 0], [0, 0]])
    assert recl == [4, 2]


def test_only_hard_positions_count_and_a_gain_to_the_end_has_no_length():
    easy, hard = np.full((1, 3, 9), 1.0), np.array([[[8.0], [6.0], [3.0]]])
    easy[0, 1:] = 0.0  # a gain on easy tokens, which does not count
    gains, recl = context_gains(np.concatenate([easy, hard], -1), [2, 4, 8])
    np.testing.assert_allclose(gains, [[1 - np.exp(-2), 1 - np.exp(-3)]])
    assert recl == [None]


def test_a_doubling_that_gains_nothing_does_not_hide_a_later_gain():
    losses = np.array([[8.0, 8.0, 6.0, 6.0]])[..., None] + np.zeros(10)
    assert context_gains(losses, [4, 8, 16, 32])[1] == [16]


def test_a_longer_context_that_harms_is_no_gain():
    losses = np.array([[1.0, 3.0]])[..., None] + np.zeros(10)
    assert context_gains(losses, [2, 4])[0].tolist() == [[0.0]]
