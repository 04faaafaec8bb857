"""The small Table 1: its rows, its untrained baselines, its files."""

import json
import lzma

import pytest

from block_recurrent import gin_files
from block_recurrent.data import Corpus, Document
from block_recurrent.lab.benchmark.timing import ratio, time_in_turn
from block_recurrent.lab.tables.layout import publish
from block_recurrent.lab.tables.naming import segment_of, window_of
from block_recurrent.lab.tables.paper import TABLE_1, row_figures
from block_recurrent.lab.tables.rows import (
    paper_rows,
    reference,
    row_at,
    small_table_rows,
    table_rows,
)
from block_recurrent.lab.tables.small_table import make_page
from block_recurrent.lab.tables.train_table import shorten
from block_recurrent.lab.tables.untrained import Order2Model, lzma_bits_per_byte
from block_recurrent.model.parameters import count_parameters
from block_recurrent.training.build import abstract_model


@pytest.fixture(scope="module")
def base():
    return gin_files.load(["table.gin"])


def documents(*texts):
    return tuple(Document(f"d{i}", "", text) for i, text in enumerate(texts))


def test_the_rows_are_those_of_the_paper(base):
    names = [row.paper for row in table_rows(base)]
    assert len(names) == len(set(names)) == 13
    assert set(TABLE_1) <= set(names)


def test_rows_differ_from_the_base_only_where_they_must(base):
    rows = small_table_rows(base)
    for row in rows:
        assert (row.config.data, row.config.training) == (base.data, base.training)
    older, rows = rows[:3], rows[3:]
    assert [row.name for row in older] == ["LSTM", "Transformer:16", "Transformer-XL:16"]
    assert all(row.config.optimizer == base.optimizer for row in rows)
    assert [row.paper for row in rows] == [row.paper for row in table_rows(base)]
    assert [row.config.model.window for row in rows[:4]] == [16, 32, 64, 16]
    assert [row.config.model.detach_windows for row in rows[:4]] == [True, True, True, False]
    assert reference(base).config.model.num_layers == base.model.num_layers + 1
    feedback = row_at(base, "feedback_lstm_single").config.model
    assert (feedback.gate, feedback.wiring, feedback.feedback) == ("lstm", "single", True)


def test_the_lstm_has_as_many_parameters_as_the_reference(base):
    lstm, *_ = small_table_rows(base)
    counts = [
        count_parameters(abstract_model(row.config.model), embedding=False)
        for row in (lstm, reference(base))
    ]
    assert abs(counts[0] / counts[1] - 1) < 0.01


def test_segments_and_windows_are_those_of_the_models(base):
    shown = {
        row.name: (segment_of(row.config), window_of(row.config)) for row in small_table_rows(base)
    }
    assert shown["LSTM"] == (128, None)
    assert shown["Transformer:16"] == (16, None)
    assert shown["Transformer-XL:16"] == (16, 16)
    assert shown["XL:64"] == (64, 64)
    assert shown["Rec:fixed:skip"] == (128, 16)


def test_lzma_is_that_of_the_standard_library():
    text = "def f(x):\n    return x\n" * 20
    size = len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert lzma_bits_per_byte(documents(text, text)) == 8 * size / len(text)


def test_order_2_model_is_a_distribution_and_learns_contexts():
    bits_per_byte = Order2Model(documents("abcabcabc" * 50)).bits_per_byte
    assert bits_per_byte(documents("abcabc")) < 0.3
    assert bits_per_byte(documents("cbacba")) > 3
    two_bytes = [documents("ab" + chr(byte)) for byte in range(128)]
    prefix = bits_per_byte(documents("ab")) * 2
    bits = [bits_per_byte(d) * 3 - prefix for d in two_bytes]
    assert 0.9 < sum(2.0**-b for b in bits) <= 1 + 1e-9


def test_ratio_is_a_median_of_pairs():
    assert ratio([1.0, 2.0, 30.0], [1.0, 1.0, 10.0]) == 2.0


def test_runs_take_turns():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    assert {name: len(taken) for name, taken in time_in_turn(runs, 2).items()} == {"a": 2, "b": 2}
    assert order == ["a", "b"] * 3


def test_the_page_has_every_row_and_invents_nothing(base, tmp_path):
    results = [
        {
            "row": row.name,
            "paper_row": row.paper,
            "parameters": 1000,
            "segment": 512,
            "window": None,
            "step_time": 1.0,
            "bits_per_byte": 2.0 + index / 100,
            "paper": row_figures(row.paper),
        }
        for index, row in enumerate(small_table_rows(base))
    ]
    publish(make_page(results, {"lzma": 2.2, "order 2": 2.9}, "Small models."), tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    for row in small_table_rows(base):
        shown = [cell.strip() for cell in cells[row.name]][-5:]
        assert [float(x) if x else None for x in shown] == list(row_figures(row.paper).values())
    assert [line.split("|")[1].strip() for line in lines if "|" in line][-2:] == ["lzma", "order 2"]
    assert len(json.loads((tmp_path / "table.json").read_text())["results"]) == 16
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_shortened_documents_are_prefixes():
    corpus = shorten(Corpus(documents("abcdef", "xy")), 3)
    assert [d.text for d in corpus.documents] == ["abc", "xy"]


def test_a_row_differs_from_a_base_as_its_gin_file_does_from_the_papers_size(base):
    for row in table_rows(base):
        paper = next(other for other in paper_rows() if other.paper == row.paper)
        model, large = row.config.model, paper.config.model
        assert model.window * 512 == large.window * base.model.window
        assert model.num_layers - base.model.num_layers == large.num_layers - 12
        assert bool(model.recurrent_layers) == bool(large.recurrent_layers)
        lanes = row.config.data.batch_size * row.config.data.segment_length
        assert lanes == base.data.batch_size * base.data.segment_length
