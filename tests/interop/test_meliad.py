"""Laws of reading and writing parameters by the authors' names."""

import jax
import numpy as np
import pytest

from block_recurrent.interop.meliad import load_parameters, to_parameters
from tests.helpers import MODELS, assert_equal, random_model


@pytest.mark.parametrize("name", ["slide_rotary", "lstm_dual"])
def test_writing_and_reading_are_inverse(name):
    model = random_model(MODELS[name])
    parameters = {key: np.asarray(value) for key, value in to_parameters(model).items()}
    loaded = load_parameters(parameters, MODELS[name])
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    assert_equal(loaded, model)
    sizes = [leaf.size for leaf in jax.tree.leaves(model)]
    assert sum(value.size for value in parameters.values()) == sum(sizes)


def test_all_names_that_do_not_fit_are_in_one_error():
    config = MODELS["lstm_dual"]
    parameters = dict(to_parameters(random_model(config)))
    del parameters["embed/embedding"], parameters["transformer2/tbase/_kvq/attention_scale"]
    parameters["transformer3/tbase/_kvq/attention_scale"] = np.zeros(2)
    parameters["transformer1/recurrent_initial_state"] = np.zeros((12, 3))
    with pytest.raises(ValueError, match="the parameters do not fit the configuration") as caught:
        load_parameters(parameters, config)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: embed/embedding (11, 12)",
        "  missing: transformer2/tbase/_kvq/attention_scale (2,)",
        "  misshapen: transformer1/recurrent_initial_state is (12, 3), but (3, 12) is needed",
        "  unknown: transformer3/tbase/_kvq/attention_scale (2,)",
    ]
