"""Documents that set facts and ask for them later: multi-query associative recall.

After Arora et al. 2023, "Zoology" (arXiv 2312.04927). A round sets facts, a key and a value each.
Then come tokens that mean nothing, the gap. Then each key comes once more, in another order, and
the token after it, the fact's value, is to be predicted. Tokens are bytes, so a round can be read:

    AcDm7.31(40)12-6DmAc
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from block_recurrent.data import Batch, ByteTokenizer

KEYS, VALUES, FILLERS = b"ABCDEFGHIJKLMNOP", b"abcdefghijklmnop", b"0123456789 .,;:!?+-*/=<>()[]{}"


class Task(NamedTuple):
    """What rounds are like.

    Attributes:
      facts: how many a round sets.
      keys: how many keys they are drawn from, at most 16; in a round they differ.
      shortest: the shortest gap in training, in tokens.
      longest: the longest gap in training.
    """

    facts: int
    keys: int
    shortest: int
    longest: int


class Round(NamedTuple):
    """Facts, a gap, and the questions.

    Attributes:
      tokens: [n] int32.
      asked: [n] bool, the values that are to be predicted.
    """

    tokens: np.ndarray
    asked: np.ndarray


def make_round(rng: np.random.Generator, facts: int, keys: int, gap: int) -> Round:
    """Returns a round with this many facts of `keys` keys, and a gap of `gap` tokens."""
    own = rng.choice(list(KEYS[:keys]), facts, replace=False)
    pairs = np.stack([own, rng.choice(list(VALUES), facts)], axis=1)
    filler = rng.choice(list(FILLERS), gap)
    tokens = np.concatenate([pairs.ravel(), filler, rng.permutation(pairs).ravel()])
    asked = np.arange(len(tokens)) >= len(tokens) - 2 * facts
    asked[-2 * facts :: 2] = False
    return Round(tokens.astype(np.int32), asked)


def training_batches(
    task: Task, batch_size: int, segment_length: int, steps: int, seed: int
) -> Iterator[Batch]:
    """Yields a segment of B documents for each step; only what is asked for counts.

    A document is rounds, one after another, that fill two segments or a little more. Gaps are
    evenly distributed over their logarithm. The longest is twice the shortest at first, and grows
    to the task's in the first two thirds of the steps. Rounds have from one fact to the task's
    number.
    """
    rng = np.random.default_rng(seed)
    rows = [(np.zeros(1, np.int32), np.zeros(0, bool))] * batch_size
    for step in range(steps):
        grown = min(1.0, 1.5 * step / steps)
        longest = task.longest**grown * min(2 * task.shortest, task.longest) ** (1 - grown)
        shape = (batch_size, segment_length)
        batch = Batch(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.bool_),
            np.zeros(batch_size, np.bool_),
        )
        for row, (stream, asked) in enumerate(rows):
            if not len(asked):
                stream, asked = _document(rng, task, longest, 2 * segment_length)
                batch.start_of_document[row] = True
            length = min(segment_length, len(asked))
            batch.inputs[row, :length] = stream[:length]
            batch.targets[row, :length] = stream[1 : length + 1]
            batch.mask[row, :length] = asked[:length]
            rows[row] = stream[length:], asked[length:]
        yield batch


def _document(
    rng: np.random.Generator, task: Task, longest: float, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the beginning of a document and its tokens, [n + 1], and which are asked for, [n]."""
    rounds: list[Round] = []
    while sum(len(each.tokens) for each in rounds) < length:
        gap = int(math.exp(rng.uniform(math.log(task.shortest), math.log(longest))))
        rounds.append(make_round(rng, int(rng.integers(1, task.facts + 1)), task.keys, gap))
    start = [ByteTokenizer.beginning_of_document]
    tokens = np.concatenate([start, *(each.tokens for each in rounds)])
    return tokens.astype(np.int32), np.concatenate([each.asked for each in rounds])
