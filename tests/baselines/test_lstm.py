"""What is special to the LSTM."""

import numpy as np
import pytest

from block_recurrent.baselines import lstm_of_size
from block_recurrent.gin_files import load
from block_recurrent.model.parameters import count_parameters, named_parameters
from block_recurrent.training.build import abstract_model
from tests.baselines.tiny import CONFIGS, random_baseline
from tests.helpers import assert_close, random_like, random_tokens, read


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def test_it_is_its_equations():
    model, tokens = random_baseline(CONFIGS["lstm"]), random_tokens(2, 5)
    state = random_like(model.initial_state(2))
    p = {name: np.asarray(x, np.float64) for name, x in named_parameters(model).items()}
    x = p["embedding"][tokens]
    cells, hiddens = [], []
    for layer, (c, h) in enumerate(zip(*map(np.asarray, state), strict=True)):
        name, outputs = f"layers.{layer}", []
        for token in np.moveaxis(norm(x, p[f"{name}.norm.scale"]), 1, 0):
            gates = token @ p[f"{name}.cell.dense_i.kernel"] + h @ p[f"{name}.cell.dense_h.kernel"]
            i, f, g, o = np.split(gates + p[f"{name}.cell.dense_h.bias"], 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h @ p[f"{name}.projection.kernel"])
        x = x + np.stack(outputs, axis=1)
        cells.append(c)
        hiddens.append(h)
    logits = norm(x, p["norm.scale"]) @ p["embedding"].T / np.sqrt(10)
    actual, after = read(model, tokens, state)
    assert_close(actual, logits)
    assert_close(tuple(after), (np.stack(cells), np.stack(hiddens)))


def count(config) -> int:
    return count_parameters(abstract_model(config), embedding=False)


@pytest.mark.parametrize("parameters", [3_000, 33_333, 151_000_000])
def test_no_other_hidden_size_comes_nearer(parameters):
    def of(hidden: int | None = None):
        sizes = {"vocab_size": 9, "num_layers": 3, "model_size": 16, "dropout": 0.1}
        config = lstm_of_size(parameters, **sizes)
        assert config.dropout == 0.1
        if hidden is None:
            return config
        return type(config)(**{**vars(config), "hidden_size": hidden})

    best = of().hidden_size
    error = abs(count(of(best)) - parameters)
    for other in (best - 1, best + 1):
        assert other <= 0 or error <= abs(count(of(other)) - parameters)


def test_too_few_parameters_are_a_sentence():
    with pytest.raises(ValueError, match="hidden_size 1 have .* parameters, more than 10"):
        lstm_of_size(10, vocab_size=9)


def test_the_row_has_as_many_parameters_as_the_layers_of_the_table():
    config = load(["table1/pg19_bytes/lstm.gin"], needs_data=False).model
    table = count(load(["table1/pg19_bytes/xl_512.gin"], needs_data=False).model)
    assert abs(lstm_of_size(table, vocab_size=256).hidden_size - config.hidden_size) <= 16
