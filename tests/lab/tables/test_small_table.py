"""The small Table 1: its rows, its untrained baselines, its files."""

import json
import lzma
import sys

import pytest

from block_recurrent import gin_files
from block_recurrent.data import Corpus, Document
from block_recurrent.lab.benchmark.timing import ratio, time_in_turn
from block_recurrent.lab.tables.layout import show
from block_recurrent.lab.tables.naming import segment_of, window_of
from block_recurrent.lab.tables.paper import TABLE_1, row_figures
from block_recurrent.lab.tables.rows import recurrent, reference, small_table_rows, table_rows
from block_recurrent.lab.tables.small_table import SmallTable
from block_recurrent.lab.tables.train_row import shorten
from block_recurrent.lab.tables.untrained import lzma_bits_per_byte, order_2_bits_per_byte
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
    feedback = recurrent(base, "lstm", "single", feedback=True).config.model
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
    train = documents("abcabcabc" * 50)
    assert order_2_bits_per_byte(train, documents("abcabc")) < 0.3
    assert order_2_bits_per_byte(train, documents("cbacba")) > 3
    two_bytes = [documents("ab" + chr(byte)) for byte in range(128)]
    prefix = order_2_bits_per_byte(train, documents("ab")) * 2
    bits = [order_2_bits_per_byte(train, d) * 3 - prefix for d in two_bytes]
    assert 0.9 < sum(2.0**-b for b in bits) <= 1 + 1e-9


def test_ratio_is_a_median_of_pairs():
    assert ratio([1.0, 2.0, 30.0], [1.0, 1.0, 10.0]) == 2.0


def test_runs_take_turns():
    order = []
    runs = {name: (lambda name=name: order.append(name) or 1.0) for name in "ab"}
    assert time_in_turn(runs, rounds=2) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert order == ["a", "b"] * 3


def fake_table(base):
    results = [
        {
            "row": row.name,
            "paper_row": row.paper,
            "parameters": 1000,
            "segment": 512,
            "window": 64,
            "step_time": 1.0,
            "bits_per_byte": 2.0 + index / 100,
            "paper": row_figures(row.paper)._asdict(),
        }
        for index, row in enumerate(small_table_rows(base))
    ]
    return SmallTable(results, {"lzma": 2.2, "order 2": 2.9}, "Small models.")


def test_report_files_hold_every_row_and_invent_nothing(base, tmp_path):
    table = fake_table(base)
    markdown, data, picture = table.write(tmp_path)
    lines = markdown.read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    for row in small_table_rows(base):
        shown = [cell.strip() for cell in cells[row.name]][-5:]
        assert [float(x) if x else None for x in shown] == list(row_figures(row.paper))
    assert len(json.loads(data.read_text())["results"]) == 16
    assert picture.read_bytes().startswith(b"\x89PNG")
    columns, rows, _ = table.table()
    assert all(len(row) == len(columns) for row in rows)


def test_without_matplotlib_the_report_has_no_picture(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = markdown, data = fake_table(base).write(tmp_path)
    show("the table", written)
    assert "Small models." in markdown.read_text() and ".png" not in markdown.read_text()
    assert len(json.loads(data.read_text())["results"]) == 16
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["the table", "", "no picture: pip install '.[plots]'"]
    assert shown[3:] == [f"written to {path}" for path in written]


def test_text_has_the_untrained_baselines_under_the_rows(base):
    lines = fake_table(base).text().splitlines()
    assert lines.index("") == 18
    assert [line.split()[0] for line in lines[19:21]] == ["lzma", "order"]


def test_shortened_documents_are_prefixes():
    corpus = shorten(Corpus(documents("abcdef", "xy")), 3)
    assert [d.text for d in corpus.documents] == ["abc", "xy"]
