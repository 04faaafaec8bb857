"""What tables call a run."""

import pytest

from block_recurrent import gin_files
from block_recurrent.lab.tables.layout import FAMILIES
from block_recurrent.lab.tables.naming import (
    ROWS,
    column,
    distinct_names,
    family,
    row_name,
    window_of,
)
from block_recurrent.lab.tables.paper import TABLE_1
from block_recurrent.lab.tables.rows import paper_row, paper_rows
from tests.synthetic_runs import load, paper, small


def test_every_row_of_the_paper_has_its_own_name():
    names = [row_name(row.config) for row in paper_rows()]
    assert names == [row.paper for row in paper_rows()]
    assert all(paper_row(row.config) is row for row in paper_rows())
    assert set(TABLE_1) <= set(names) < set(ROWS.values())
    assert set(map(family, ROWS.values())) == set(FAMILIES)


@pytest.mark.parametrize(
    "changed",
    [
        {"model__num_states": 1024},
        {"training__clear_states": True},
        {"model__recurrent_layers": (-4, -3)},
        {"model__mlp_size": 2048},
        {"data__segment_length": 2048},
        {"model__positions": "rotary"},
    ],
    ids=str,
)
def test_another_architecture_is_no_row_of_the_paper(changed):
    assert paper_row(load(paper("rec_fixed_skip", **changed))) is None


def test_vocabulary_batch_and_seeds_leave_the_row_as_it_is():
    changed = {"model__vocab_size": 32_000, "data__batch_size": 8, "training__seed": 5}
    found = paper_row(load(paper("rec_fixed_skip", **changed)))
    assert found is not None and found.paper == "Rec:fixed:skip"


def test_columns_follow_from_name_and_tokenizer():
    def of(name, tokenizer):
        return column(load(paper("slide_13l", data__name=name, data__tokenizer=tokenizer)))

    assert of("PG19", "bytes") == "PG19 bytes"
    assert of("pg19", "sentencepiece") == "PG19 tokens"
    assert of("arXiv", "sentencepiece") == "arXiv"
    assert of("GitHub", "sentencepiece") == "GitHub"
    assert of("arXiv", "bytes") == "arXiv, bytes"
    assert load(small(corpus="latex")).data.corpus_name == "latex"
    assert gin_files.load(["table.gin"]).data.corpus_name == "stdlib"


def test_names_tell_what_is_unusual():
    usual, other, third = (load(small(model__num_states=n)) for n in (16, 32, 64))
    assert distinct_names([usual]) == ["Rec:fixed:skip"]
    both = ["Rec:fixed:skip (num_states = 16)", "Rec:fixed:skip (num_states = 32)"]
    assert distinct_names([usual, other]) == both
    faster = load(small(optimizer__learning_rate=0.1))
    assert distinct_names([usual, faster, third])[2] == "Rec:fixed:skip (num_states = 64)"


def test_other_models_have_names_that_are_no_rows_of_the_paper():
    names = {"transformer_xl": "Transformer-XL:512", "transformer": "Transformer:512"}
    for row, name in (names | {"lstm": "LSTM"}).items():
        config = load(paper(row))
        assert row_name(config) == name and paper_row(config) is None
        assert window_of(config) == (512 if row == "transformer_xl" else None)
        dropped = load(paper(row, model__dropout=0.5))
        own = [f"{name} (dropout = {rate})" for rate in (0.05, 0.5)]
        assert distinct_names([config, dropped]) == own
        assert {family(name) for name in (*own, name)} == {name.partition(":")[0]}
        assert family(name) in FAMILIES
