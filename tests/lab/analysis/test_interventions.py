"""Laws of readings with other recurrent states."""

import functools

import numpy as np
import pytest

from block_recurrent.lab.analysis.interventions import (
    CLEARED,
    FROZEN,
    NEVER,
    NORMAL,
    READINGS,
    SWAPPED,
    intervened_losses,
)
from block_recurrent.lab.analysis.token_losses import token_losses
from tests.lab.analysis.corpora import TEXTS, corpus_of, model_of

CORPUS = corpus_of(*TEXTS)
FREEZE_AT = 8


@functools.cache
def losses_of(*layers, texts=TEXTS, lanes=3, freeze_at=FREEZE_AT, **changes):
    return intervened_losses(
        model_of(*layers, **changes),
        corpus_of(*texts),
        lanes=lanes,
        segment_length=8,
        freeze_at=freeze_at,
    )


def assert_same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def differ(one, other):
    """The first position of each document at which losses differ."""
    apart = [np.abs(x - y) > 1e-4 for x, y in zip(one, other, strict=True)]
    return [next(iter(np.flatnonzero(where)), None) for where in apart]


def test_the_normal_reading_is_the_loss_of_the_tokens():
    expected = token_losses(model_of(1), CORPUS, lanes=2, segment_length=8)
    assert_same(losses_of(1)[NORMAL], expected)


def test_with_fewer_lanes_than_documents_too():
    for name in (NORMAL, CLEARED, NEVER, FROZEN):
        assert_same(losses_of(1, lanes=1)[name], losses_of(1)[name])


def test_clearing_at_every_segment_is_that_of_evaluation():
    model = model_of(1)
    expected = token_losses(model, CORPUS, lanes=3, segment_length=8, clear_states=True)
    assert_same(losses_of(1)[CLEARED], expected)


def test_without_recurrence_nothing_has_an_effect():
    found = losses_of()
    for name in READINGS:
        assert_same(found[name], found[NORMAL])


def test_states_of_the_same_document_change_nothing():
    found = losses_of(1, texts=(TEXTS[0],) * 3)
    assert_same(found[SWAPPED], found[NORMAL])


def test_frozen_from_the_start_is_cleared_at_every_block():
    assert_same(losses_of(1, freeze_at=0)[FROZEN], losses_of(1)[NEVER])


def test_frozen_after_the_end_is_normal():
    assert_same(losses_of(1, freeze_at=1000)[FROZEN], losses_of(1)[NORMAL])


@pytest.mark.parametrize("feedback", [False, True])
def test_an_intervention_is_seen_from_the_block_on_where_it_begins(feedback):
    found = losses_of(1, feedback=feedback)
    first = {name: differ(found[name], found[NORMAL]) for name in READINGS}
    # A block has 4 tokens; states from the first block reach tokens of the second.
    assert first[NORMAL] == [None] * 3
    assert first[NEVER] == first[SWAPPED] == [4, 4, 4]
    assert first[CLEARED] == [8, 8, 8]
    assert first[FROZEN] == [FREEZE_AT + 4] * 3
