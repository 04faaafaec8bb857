"""Laws of the gates: the equations, and their limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.model.gates import GATES, FixedGate, LSTMGate
from tests import reference
from tests.helpers import assert_close, assert_equal, random_like, randomize

STATE, INPUTS = random_like([jnp.zeros((2, 3, 6)), jnp.zeros((2, 3, 5))])


def make(kind, **options):
    return randomize(lambda rngs: kind(5, 6, rngs=rngs, **options))


def numpy(x):
    return np.asarray(x, np.float64)


@pytest.mark.parametrize("activation", [None, jnp.tanh])
@pytest.mark.parametrize("kind", GATES.values())
def test_gate_is_the_equation(kind, activation):
    gate = make(kind, **({"activation": activation} if activation else {}))
    update = numpy(INPUTS) @ numpy(gate.output.kernel[...])
    update = np.tanh(update) if activation else update
    if kind is FixedGate:
        part = {"gate_bias": numpy(gate.bias[...])}
        expected = reference.fixed_gate(part, numpy(STATE), update, None)
    else:
        part = {
            "forget_gate/kernel": numpy(gate.forget.kernel[...]),
            "forget_gate/bias": numpy(gate.forget_bias[...]),
            "input_gate/kernel": numpy(gate.input.kernel[...]),
            "input_gate/bias": numpy(gate.input_bias[...]),
        }
        expected = reference.lstm_gate(part, numpy(STATE), update, numpy(INPUTS))
    assert_close(gate(STATE, INPUTS), expected)


def test_fixed_gate_keeps_or_overwrites_in_its_limits():
    gate = make(FixedGate)
    gate.bias[...] = jnp.full(6, 100.0)
    assert_equal(gate(STATE, INPUTS), STATE)
    gate.bias[...] = jnp.full(6, -100.0)
    assert_close(gate(STATE, INPUTS), INPUTS @ gate.output.kernel[...])


def test_lstm_gate_keeps_forgets_and_adds_in_its_limits():
    gate = make(LSTMGate)
    update = INPUTS @ gate.output.kernel[...]
    for forget, enter, expected in [
        (100, -100, STATE),
        (-100, 100, update),
        (100, 100, STATE + update),
        (-100, -100, jnp.zeros_like(STATE)),
    ]:
        gate.forget_bias[...] = jnp.full(6, float(forget))
        gate.input_bias[...] = jnp.full(6, float(enter))
        assert_close(gate(STATE, INPUTS), expected)


@pytest.mark.parametrize("kind", GATES.values())
def test_shares_are_what_old_and_new_are_multiplied_by(kind):
    gate = make(kind)
    kept, added = gate.shares(INPUTS)
    expected = STATE * kept + (INPUTS @ gate.output.kernel[...]) * added
    assert_close(gate(STATE, INPUTS), expected)


@pytest.mark.parametrize("kind", GATES.values())
def test_state_stays_float32_whatever_the_inputs(kind):
    gate = make(kind)
    low = gate(STATE, INPUTS.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    assert_close(low, gate(STATE, INPUTS), 3e-2)
