"""The small Table 1: its rows, what it is compared with, its files."""

import dataclasses
import json
import lzma
import math
from pathlib import Path

import pytest

from block_recurrent import gin_files
from block_recurrent.data import Corpus, Document, make_tokenizer
from block_recurrent.lab.benchmark.timing import ratio, time_in_turn
from block_recurrent.lab.tables.layout import publish
from block_recurrent.lab.tables.paper import TABLE_1, row_figures
from block_recurrent.lab.tables.rows import (
    LONG_SEEDS,
    MAIN,
    paper_rows,
    reference,
    row_at,
    small_table_rows,
    table_rows,
)
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.lab.tables.small_table import (
    frontier,
    lzma_bits_per_byte,
    make_page,
)
from block_recurrent.lab.tables.train_table import shorten, title_of, with_pieces
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs.reading import Point, Run
from block_recurrent.training.build import abstract_model
from block_recurrent.training.evaluation import Evaluation


@pytest.fixture(scope="module")
def base():
    return gin_files.load(["table.gin"])


def point_of(row):
    """What training a row may have given: 2 bits a byte and a hundredth for each seed."""
    nats = math.log(2) * (2.0 + row.seed / 100) * 1000
    return Point(row.config.training.num_steps, 1, Evaluation(nats, 400, 1000, 100, 0))


def documents(*texts):
    return tuple(Document(f"d{i}", "", text) for i, text in enumerate(texts))


def all_rows(base):
    """Every row of the long table, once."""
    return [row for row in small_table_rows(base, long=True) if row.seed == base.training.seed]


@pytest.mark.parametrize("setting", ["state_passing=0.5", "clear_states=True"])
def test_rows_of_older_systems_leave_out_what_is_said_of_states(setting):
    rows = all_rows(gin_files.load(["table.gin"], [f"training.{setting}"]))
    name, value = setting.split("=")
    kept = {row.name: str(getattr(row.config.training, name)) == value for row in rows}
    older = {"LSTM", "Transformer:8", "Transformer-XL:8"}
    assert {name for name, keeps in kept.items() if not keeps} == older


def test_the_short_table_has_seven_rows_and_the_long_one_all_and_seeds(base):
    short, long = small_table_rows(base), small_table_rows(base, long=True)
    assert len(short) == 7 and len(all_rows(base)) == 16 and set(short) < set(long)
    assert len(long) == 16 + (LONG_SEEDS - 1) * len(MAIN)
    others = {title_of(row, base): row for row in set(long) - set(all_rows(base))}
    assert others["Rec:fixed:skip, seed 2"].config.data.seed == 2
    assert len(others) == (LONG_SEEDS - 1) * len(MAIN)
    assert len(set(small_table_rows(base, seeds=3))) == 21


def test_pieces_are_learned_once_and_as_many_as_the_model_has(base, tmp_path):
    def sized(number):
        return dataclasses.replace(base, model=dataclasses.replace(base.model, vocab_size=number))

    text = "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return f(x) - 1\n" * 99
    changed = with_pieces(sized(277), Corpus(documents(text, text)), tmp_path)
    assert changed.model == sized(277).model
    assert make_tokenizer(changed.data).vocab_size == 277
    for done in (changed, sized(256)):
        assert with_pieces(done, Corpus(()), tmp_path) == done
    assert with_pieces(sized(277), Corpus(()), tmp_path) == changed


def test_every_seed_is_the_one_asked_for_or_a_later_one(base):
    asked = dataclasses.replace(base, data=dataclasses.replace(base.data, seed=5))
    rows = small_table_rows(asked, seeds=2)[:2]
    seeds = [(row.config.training.seed, row.config.data.seed) for row in rows]
    assert seeds == [(0, 5), (1, 6)]


def test_the_rows_are_those_of_the_paper(base):
    names = [row.paper for row in table_rows(base)]
    assert len(names) == len(set(names)) == 13
    assert set(TABLE_1) <= set(names)


def test_rows_differ_from_the_base_only_where_they_must(base):
    rows = all_rows(base)
    for row in rows:
        assert (row.config.data, row.config.training) == (base.data, base.training)
    older, rows = rows[:3], rows[3:]
    assert [row.name for row in older] == ["LSTM", "Transformer:8", "Transformer-XL:8"]
    assert all(row.config.optimizer == base.optimizer for row in rows)
    assert [row.paper for row in rows] == [row.paper for row in table_rows(base)]
    assert [row.config.model.window for row in rows[:4]] == [8, 16, 32, 8]
    assert [row.config.model.detach_windows for row in rows[:4]] == [True, True, True, False]
    assert reference(base).config.model.num_layers == base.model.num_layers + 1
    feedback = row_at(base, "feedback_lstm_single").config.model
    assert (feedback.gate, feedback.wiring, feedback.feedback) == ("lstm", "single", True)


def test_the_lstm_has_as_many_parameters_as_the_reference(base):
    lstm, *_ = all_rows(base)
    counts = [
        count_parameters(abstract_model(row.config.model), embedding=False)
        for row in (lstm, reference(base))
    ]
    assert abs(counts[0] / counts[1] - 1) < 0.01


def test_lzma_is_that_of_the_standard_library():
    text = "def f(x):\n    return x\n" * 20
    size = len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert lzma_bits_per_byte(documents(text, text)) == 8 * size / len(text)


def test_ratio_is_a_median_of_pairs():
    assert ratio([1.0, 2.0, 30.0], [1.0, 1.0, 10.0]) == 2.0


def test_runs_take_turns():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    assert {name: len(taken) for name, taken in time_in_turn(runs, 2).items()} == {"a": 2, "b": 2}
    assert order == ["a", "b"] * 3


def test_the_page_has_every_row_and_invents_nothing(base, tmp_path):
    rows = small_table_rows(base, long=True)
    groups = group_runs(
        Run(Path(f"{number}"), row.config, (point_of(row),), 10**6, 1, 1.0, {})
        for number, row in enumerate(rows)
    )
    publish(make_page(groups, dict.fromkeys(rows, 1.0), 2.2, "Small models."), tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    for row in all_rows(base):
        shown = [cell.strip() for cell in cells[row.name]][-5:]
        assert [float(x) if x else None for x in shown] == list(row_figures(row.paper).values())
    assert cells["Rec:fixed:skip"][4].strip() == "2.010 ± 0.010 (3)"
    assert cells["Rec:fixed:dual"][4].strip() == "2.000"
    assert [line.split("|")[1].strip() for line in lines if "|" in line][-1] == "lzma"
    runs = [len(row["runs"]) for row in json.loads((tmp_path / "table.json").read_text())["rows"]]
    assert len(runs) == 16 and sum(runs) == 24
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_frontier_has_the_rows_that_no_other_surpasses():
    assert frontier([(1.2, 2.1), (0.9, 2.3), (0.8, 2.2)]) == [(0.8, 2.2), (1.2, 2.1)]


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
