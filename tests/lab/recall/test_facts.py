"""Laws of documents that set facts and ask for them."""

import numpy as np
import pytest

from block_recurrent.lab.recall.facts import (
    FILLERS,
    KEYS,
    VALUES,
    Task,
    make_round,
    training_batches,
)

TASK = Task(facts=3, keys=5, shortest=4, longest=40)


@pytest.mark.parametrize("facts, keys, gap", [(1, 1, 0), (4, 4, 7), (3, 16, 100)])
def test_every_fact_is_set_once_and_asked_once_after_the_gap(facts, keys, gap):
    tokens, asked = make_round(np.random.default_rng(0), facts, keys, gap)
    text = tokens.astype(np.uint8).tobytes()
    told, middle, questions = np.split(np.frombuffer(text, np.uint8), [2 * facts, 2 * facts + gap])
    pairs = {tuple(pair) for pair in told.reshape(-1, 2).tolist()}
    assert pairs == {tuple(pair) for pair in questions.reshape(-1, 2).tolist()}
    assert len({key for key, _ in pairs}) == facts and len(middle) == gap
    assert all(key in KEYS[:keys] and value in VALUES for key, value in pairs)
    assert set(middle.tolist()) <= set(FILLERS)
    np.testing.assert_array_equal(np.flatnonzero(asked), 2 * facts + gap + 1 + 2 * np.arange(facts))


def streams(steps, seed=0, task=TASK):
    """The inputs, targets and masks of each row, one segment after another, and the starts."""
    batches = list(training_batches(task, 3, 16, steps, seed))
    parts = [np.concatenate([batch[part] for batch in batches], axis=1) for part in range(3)]
    return *parts, np.stack([batch.start_of_document for batch in batches], axis=1)


def test_what_is_asked_was_set_before_in_the_same_document():
    inputs, targets, mask, starts = streams(40)
    answers = 0
    for row in range(3):
        known, before = {}, None
        for place in range(inputs.shape[1]):
            if place % 16 == 0 and starts[row, place // 16]:
                known, before = {}, None
                assert inputs[row, place] == 0
            elif before is not None and inputs[row, place]:
                assert inputs[row, place] == before  # the target before
            if mask[row, place]:
                assert known[inputs[row, place]] == targets[row, place]
                answers += 1
            if inputs[row, place] in KEYS:
                known[inputs[row, place]] = targets[row, place]
            before = targets[row, place]
    assert answers == mask.sum() > 100


def test_batches_follow_from_the_seed():
    for one, other in zip(streams(10), streams(10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (streams(10)[0] != streams(10, seed=1)[0]).any()


def test_gaps_grow_to_the_longest_and_are_never_shorter_than_the_shortest():
    inputs, *_ = streams(300)
    lengths: dict[str, list[int]] = {"early": [], "late": []}
    for row in np.isin(inputs, list(FILLERS)):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).reshape(-1, 2)
        for begin, end in edges[:-1].tolist():  # the last gap may be cut
            if begin < 16 * 20 or begin > 16 * 220:
                lengths["early" if begin < 16 * 20 else "late"].append(end - begin)
    assert min(lengths["early"] + lengths["late"]) >= TASK.shortest
    assert max(lengths["early"]) <= 14 < 30 < max(lengths["late"]) <= TASK.longest
