"""Laws of cutting a segment into blocks."""

import jax.numpy as jnp
import numpy as np

from block_recurrent.model.state import (
    KeysValues,
    join_blocks,
    last_window,
    split_blocks,
    with_preceding,
)
from tests.helpers import assert_equal, random_like

X = random_like(jnp.zeros((2, 12, 6)))


def test_blocks_are_cut_and_joined():
    blocks = split_blocks(X, 4)
    assert_equal(blocks[:, 1], X[:, 4:8])
    assert_equal(join_blocks(blocks), X)


def test_a_block_and_the_one_before_are_neighbours_in_the_document():
    current = KeysValues(*random_like([jnp.zeros((2, 12, 2, 3))] * 2))
    previous = KeysValues(*random_like([jnp.zeros((2, 4, 2, 3))] * 2, seed=1))
    tiles = with_preceding(split_blocks(current, 4), previous)
    for tile, now, before in zip(tiles, current, previous, strict=True):
        document = np.concatenate([before, now], axis=1)
        for block in range(3):
            assert_equal(tile[:, block], document[:, 4 * block : 4 * block + 8])
    assert_equal(last_window(current, 4).keys, current.keys[:, 8:])
