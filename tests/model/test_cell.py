"""Laws of the block-recurrent cell: one block in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent import RecurrentCell
from block_recurrent.model.state import concatenate_windows
from tests.helpers import assert_close, assert_equal, layer_config, random_like, randomize


def make(**changes):
    config = layer_config(**changes)
    cell = randomize(lambda rngs: RecurrentCell(config, rngs=rngs))
    return cell, random_like(jnp.zeros((2, 4, 12))), random_like(cell.initial_state(2))


step = jax.jit(lambda cell, x, state: cell(x, state))
vertical = jax.jit(lambda cell, x, state: cell.vertical(x, state))
horizontal = jax.jit(lambda cell, state, tokens: cell.horizontal(state, tokens))


def test_a_step_is_both_directions_from_the_same_state():
    cell, x, state = make()
    y, after = step(cell, x, state)
    expected, current = vertical(cell, x, state)
    tokens = concatenate_windows(state.cache, current)
    assert_close((y, after.cache), (expected, current))
    assert_close(after.recurrent, horizontal(cell, state.recurrent, tokens))
    later = state._replace(recurrent=after.recurrent)
    assert np.any(np.abs(y - vertical(cell, x, later)[0]) > 1e-2)


def test_a_gate_that_keeps_hands_the_state_on_and_one_that_forgets_loses_it():
    cell, x, state = make()
    other = state._replace(recurrent=state.recurrent + 1e3)
    cell.wiring.gate.bias[...] = jnp.full(12, 100.0)
    assert_equal(step(cell, x, state)[1].recurrent, state.recurrent)
    cell.wiring.gate.bias[...] = jnp.full(12, -100.0)
    cell.wiring.gate.output.kernel[...] = jnp.zeros((16, 12))
    assert_close(step(cell, x, other)[1].recurrent, jnp.zeros((2, 3, 12)))


def test_only_single_wiring_bounds_what_enters_the_state():
    cell, x, state = make(wiring="single")
    cell.wiring.gate.bias[...] = jnp.full(12, -100.0)
    cell.wiring.gate.output.kernel[...] *= 1e3
    recurrent = step(cell, x, state)[1].recurrent
    assert np.max(np.abs(recurrent)) <= 1 and np.any(np.abs(recurrent) > 0.99)


def test_states_tell_themselves_apart_by_their_ids_alone():
    cell, x, state = make()
    same = state._replace(recurrent=jnp.ones_like(state.recurrent))
    assert np.all(np.std(step(cell, x, same)[1].recurrent, axis=1) > 1e-4)
    cell.ids[...] = jnp.ones_like(cell.ids)
    assert_close(np.std(step(cell, x, same)[1].recurrent, axis=1), np.zeros((2, 12)))


def test_a_fresh_state_is_the_learned_one_in_every_row():
    cell, _, _ = make()
    state = cell.initial_state(5)
    assert_equal(state.recurrent, [cell.initial[...]] * 5)
    assert not np.any(state.cache.keys) and not np.any(state.cache.values)


def test_more_than_one_block_is_refused():
    cell, x, state = make()
    with pytest.raises(ValueError, match="block|window"):
        jax.eval_shape(cell, jnp.concatenate([x, x], axis=1), state)
