"""The NumPy reference gives the numbers of the authors' released code, for every golden case."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests import reference
from tests.helpers import slow

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
TOLERANCE = 1e-5


class Output(NamedTuple):
    """What the reference gives for one segment, whose golden keys begin with `segment`."""

    segment: str
    loss: float
    logits: np.ndarray
    state: tuple[reference.LayerState, ...]


class Case:
    """One golden file: its arrays, its configuration and its parameters by the authors' names."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            self.arrays = dict(arrays)
        self.config = json.loads(str(self.arrays["config"]))
        self.parameters = {
            name.removeprefix("params/"): value
            for name, value in self.arrays.items()
            if name.startswith("params/")
        }

    def run(self, parameters: reference.Parameters | None = None) -> list[Output]:
        """Both segments in turn, with the golden parameters unless others are given."""
        parameters = parameters or self.parameters
        state = reference.initial_state(parameters, self.config, self.config["B"])
        outputs = []
        for segment in ("seg0", "seg1"):
            tokens = self.arrays[f"{segment}/tokens"]
            start = self.arrays[f"{segment}/start_of_sequence"]
            logits, state = reference.forward(parameters, self.config, tokens, state, start)
            outputs.append(Output(segment, reference.loss(logits, tokens), logits, state))
        return outputs


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def case(request) -> Case:
    """Each golden file in turn."""
    return Case(request.param)


def assert_close(actual, golden):
    """Equal shapes, and `max|a - b| <= 1e-5 * max(1, max|b|)`, compared in float64."""
    golden = np.asarray(golden, np.float64)
    assert np.shape(actual) == golden.shape
    assert np.max(np.abs(actual - golden)) <= TOLERANCE * max(1.0, np.max(np.abs(golden)))


def test_there_are_golden_cases():
    assert len(GOLDEN) == 12


def test_logits_and_loss(case):
    for segment, loss, logits, _ in case.run():
        assert logits.dtype == np.float64
        assert_close(logits, case.arrays[f"{segment}/logits"])
        assert_close(loss, case.arrays[f"{segment}/loss"])


def test_keys_and_values_of_the_last_window(case):
    for segment, _, _, state in case.run():
        assert len(state) == case.config["NL"]
        for layer, layer_state in enumerate(state):
            golden = f"{segment}/state/transformer{layer}"
            assert_close(layer_state.keys, case.arrays[f"{golden}/previous_keys_test"])
            assert_close(layer_state.values, case.arrays[f"{golden}/previous_values_test"])


def test_recurrent_states(case):
    for segment, _, _, state in case.run():
        for layer, layer_state in enumerate(state):
            golden = f"{segment}/state/transformer{layer}/recurrent_state_test"
            assert (layer_state.recurrent is not None) == (golden in case.arrays)
            if layer_state.recurrent is not None:
                assert_close(layer_state.recurrent, case.arrays[golden])


@pytest.mark.parametrize("name", ["feedback_lstm_single", *slow("fixed_dual", "lstm_dual")])
def test_every_parameter_matters(name):
    """In models that together have every kind of parameter."""
    (path,) = (path for path in GOLDEN if path.stem == name)
    case = Case(path)
    rng = np.random.default_rng(0)
    expected = case.run()[-1].logits
    for name, value in case.parameters.items():
        changed = {**case.parameters, name: value + 0.1 * rng.normal(size=value.shape)}
        assert np.max(np.abs(case.run(changed)[-1].logits - expected)) > 1e-4, name


def test_t5_buckets():
    assert [reference.t5_bucket(distance) for distance in range(17)] == list(range(17))
    buckets = [reference.t5_bucket(distance) for distance in range(512)]
    assert buckets == sorted(buckets)
    assert buckets.index(31) == 113
    assert set(buckets) == set(range(32))
