"""Word-level perplexity on PG19 from work directories."""

import json
import math

import pytest

from block_recurrent.lab.corpora.pg19 import COUNTS
from block_recurrent.lab.tables import table2
from block_recurrent.lab.tables.paper import PG19_WORDS, TABLE_2, TRANSFORMER_XL
from block_recurrent.runs import reading
from block_recurrent.training.evaluation import Evaluation
from experiments import table2 as program
from tests.synthetic_runs import evaluation_sums, paper, small, write_evaluation, write_run

WORDS, BOOKS = PG19_WORDS["test"], COUNTS["test"]


def test_perplexity_of_a_full_split_takes_the_published_words():
    evaluation = Evaluation(2.5e7, 4 * 10**7, 4 * 10**7, WORDS - 100)
    found = table2.word_perplexity("test", 1, evaluation, BOOKS)
    assert found.published and found.words == 6_966_499
    assert found.perplexity == pytest.approx(math.exp(2.5e7 / 6_966_499))


PARTIAL = {
    "fewer books": (99, WORDS),
    "shortened books": (BOOKS, WORDS // 2),
    "unknown books": (None, WORDS),
    "the other split": (50, 3_007_061),
}


@pytest.mark.parametrize("books, words", PARTIAL.values(), ids=PARTIAL)
def test_perplexity_of_a_part_takes_the_words_counted(books, words):
    evaluation = Evaluation(2.5e7, 4 * 10**7, 4 * 10**7, words)
    found = table2.word_perplexity("test", 1, evaluation, books)
    assert not found.published and found.words == words
    assert found.perplexity == pytest.approx(evaluation.word_perplexity)


def test_perplexity_does_not_depend_on_the_tokenizer():
    evaluation = Evaluation(2.5e7, 10**7, 4 * 10**7, WORDS)
    finer = evaluation._replace(tokens=4 * 10**7)
    found = [table2.word_perplexity("test", 1, e, BOOKS) for e in (evaluation, finer)]
    assert found[0] == found[1]


def test_perplexity_and_bits_per_token_say_the_same():
    evaluation = Evaluation(**evaluation_sums(1.5, tokens=1000, words=200))
    found = table2.word_perplexity("validation", 1, evaluation, None)
    assert math.log2(found.perplexity) == pytest.approx(1.5 * 1000 / 200)


def test_what_was_not_evaluated_is_missing(tmp_path):
    run = reading.read_run(write_run(tmp_path / "a", paper("slide_13l"), []))
    assert (
        table2.newest_word_perplexity(run, "validation") is None
        and table2.newest_word_perplexity(run, "test") is None
    )


def test_the_newest_evaluation_counts(tmp_path):
    folder = write_run(tmp_path / "a", paper("slide_13l"), [1.0, 1.0, 1.0, 1.0])
    write_evaluation(folder, "validation", 50, **evaluation_sums(2.0, words=3_007_000))
    found = table2.newest_word_perplexity(reading.read_run(folder), "validation")
    assert found is not None and found.published and found.step == 4
    line = (folder / "metrics.jsonl").read_text().splitlines()[-1]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line.replace('"step": 4', '"step": 5') + "\n")
    found = table2.newest_word_perplexity(reading.read_run(folder), "validation")
    assert found is not None and not found.published and found.step == 5


def test_the_table_has_runs_on_pg19_and_the_paper(tmp_path, capsys):
    folder = write_run(tmp_path / "a", paper("rec_fixed_skip"), [1.0] * 4)
    sums = evaluation_sums(1.0, tokens=4 * 10**7, words=WORDS)
    write_evaluation(folder, "test", BOOKS, **sums)
    other = write_run(tmp_path / "latex", small(), [1.0] * 4)
    output = tmp_path / "out"
    assert program.main([str(folder), str(other), f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    perplexity = math.exp(sums["nats"] / WORDS)
    assert f"{perplexity:.2f}  6,966,499 published" in printed
    assert all(figure in printed for figure in TABLE_2.values())
    assert f"Left out, being on none of the corpora by data.name: {other}" in " ".join(
        printed.split()
    )
    data = json.loads((output / "table2.json").read_text())
    (run,) = data["runs"]
    assert run["test"]["perplexity"] == pytest.approx(perplexity)
    assert run["validation"]["published"] is False and run["validation"]["words"] == 200
    assert (output / "table2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("corpus", TRANSFORMER_XL)
def test_corpora_of_transformer_xl_have_its_measure_beside_its_figures(tmp_path, corpus):
    run = reading.read_run(write_run(tmp_path / corpus, small(corpus=corpus), [1.5]))
    row, *published = table2.make_page([run]).tables[corpus].rows
    evaluation = run.points[-1].evaluation
    words = corpus == "WikiText-103"
    figure = evaluation.word_perplexity if words else evaluation.bits_per_byte
    assert row[-2:] == [f"{figure:,.3f}", table2.MISSING]
    assert [cells[-1] for cells in published] == list(TRANSFORMER_XL[corpus].values())
