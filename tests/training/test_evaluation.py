"""Laws of evaluation: every token once, whatever the batch size and the segment length."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from block_recurrent import LanguageModel
from block_recurrent.config import DataConfig, ExperimentConfig, TrainingConfig
from block_recurrent.data import (
    ByteTokenizer,
    Corpus,
    Document,
    TokenizedCorpus,
    evaluation_batches,
    tokenize,
)
from block_recurrent.training import Evaluation, evaluate, evaluation
from block_recurrent.training.evaluation import (
    busy_lanes,
    evaluation_step,
    evaluation_steps,
    scoring_lanes,
)
from tests.helpers import SIZES, model_config, randomize, read

WINDOW = SIZES["window"]
TEXTS = ["a", "one two three", "Größe 書 \n x", "abcdefgh", "wie bitte? " * 3, " z "]
DOCUMENTS = tuple(Document(str(number), "", text) for number, text in enumerate(TEXTS))
CORPUS = tokenize(Corpus(DOCUMENTS), ByteTokenizer())
BYTES = sum(len(text.encode()) for text in TEXTS)
CONFIG = model_config(0, num_layers=1, wiring="single", vocab_size=256)
MODEL = randomize(lambda rngs: LanguageModel(CONFIG, rngs=rngs), seed=4)


def run(lanes: int, segment_length: int, *, clear_states: bool = False, **options) -> Evaluation:
    config = ExperimentConfig(
        model=MODEL.config,
        data=DataConfig(batch_size=lanes, segment_length=segment_length),
        training=TrainingConfig(clear_states=clear_states),
    )
    return evaluate(config, MODEL, CORPUS, **options)


@pytest.fixture(scope="module")
def expected() -> float:
    """Total nats in float64 NumPy, each document read alone by one call of the model."""
    length = -(-max(len(text.encode()) for text in TEXTS) // WINDOW) * WINDOW
    total = 0.0
    for text in TEXTS:
        targets = np.frombuffer(text.encode(), np.uint8)
        inputs = np.zeros((1, length), np.int32)
        inputs[0, 1 : len(targets)] = targets[:-1]
        logits, _ = read(MODEL, inputs, MODEL.initial_state(1))
        logits = np.asarray(logits[0, : len(targets)], np.float64)
        log_sums = np.log(np.sum(np.exp(logits), axis=-1))
        total += np.sum(log_sums - logits[np.arange(len(targets)), targets])
    return total


@pytest.mark.parametrize(("batch_size", "windows"), [(1, 8), (8, 1), (32, 2)])
def test_nats_depend_on_neither_batch_size_nor_segment_length(batch_size, windows, expected):
    result = run(batch_size, windows * WINDOW)
    assert result.nats == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.nats / BYTES), rel=1e-12)
    assert result.tokens == result.bytes == BYTES
    assert result.words == 3 + 1 + 3 + 1 + 6 + 1


def test_cleared_states_make_nats_depend_on_the_segment_length_alone(expected):
    once = run(1, 2 * WINDOW, clear_states=True).nats
    assert run(4, 2 * WINDOW, clear_states=True).nats == pytest.approx(once, rel=1e-6)
    assert once != pytest.approx(expected, rel=1e-4)
    longest = -(-max(len(text.encode()) for text in TEXTS) // WINDOW) * WINDOW
    assert run(2, longest, clear_states=True).nats == pytest.approx(expected, rel=1e-6)


def test_progress_counts_up_to_the_last_token():
    shares: list[float] = []
    run(2, 2 * WINDOW, progress=shares.append)
    assert shares == sorted(set(shares)) and shares[-1] == 1
    assert all(abs(share * BYTES - round(share * BYTES)) < 1e-9 for share in shares)


def test_the_number_of_lanes_can_be_another_than_that_of_training(expected):
    result = run(2, 2 * WINDOW, batch_size=3)
    assert result.nats == pytest.approx(expected, rel=1e-6) and result.tokens == BYTES


def of_lengths(*lengths: int) -> TokenizedCorpus:
    texts = ("x" * length for length in lengths)
    documents = (Document(str(number), "", text) for number, text in enumerate(texts))
    return tokenize(Corpus(tuple(documents)), ByteTokenizer())


@pytest.mark.parametrize(
    ("lengths", "batch_size", "lanes"),
    [
        ([7] * 100, 4, 8),  # twice those of training
        ([7] * 100, 3, 6),
        ([7] * 8, 8, 8),  # none would be without a document
        ([7] * 5, 8, 8),
        ([7] * 3, 8, 4),
        ([7], 8, 1),
        ([80, *[7] * 10], 8, 2),  # the longest document takes as long as all others on one lane
        ([7] * 3, 5, 5),
    ],
)
def test_there_are_no_more_lanes_than_make_reading_shorter(lengths, batch_size, lanes):
    data = DataConfig(batch_size=batch_size, segment_length=8)
    config = ExperimentConfig(model=CONFIG, data=data)
    assert scoring_lanes(config, of_lengths(*lengths)) == lanes
    if batch_size % 2 == 0:  # microbatches are the batch that fits
        double = dataclasses.replace(data, batch_size=2 * batch_size)
        halves = dataclasses.replace(
            config, data=double, training=TrainingConfig(accumulate_steps=2)
        )
        assert scoring_lanes(halves, of_lengths(*lengths)) == lanes


@pytest.mark.parametrize("lengths", [[7] * 100, [80, 7, 7]])
def test_an_evaluation_takes_a_third_of_as_many_training_steps(lengths):
    data, corpus = DataConfig(batch_size=4, segment_length=8), of_lengths(*lengths)
    lanes = busy_lanes(data, corpus, 4)
    batches = len(list(evaluation_batches(corpus, lanes, 8, 256)))
    config = ExperimentConfig(model=CONFIG, data=data)
    assert evaluation_steps(config, corpus) == pytest.approx(batches * lanes / 4 / 3)


def watch_steps(monkeypatch, see) -> None:
    """Lets a function see every batch before it is read."""

    def step(model, carried, batch, **options):
        see(batch)
        return evaluation_step(model, carried, batch, **options)

    monkeypatch.setattr(evaluation, "evaluation_step", step)


@pytest.mark.parametrize(
    ("lanes", "read", "batches"),
    [(16, 4, 5), (4, 4, 5), (6, 3, 5), (2, 2, 6), (1, 1, 12)],  # the longest document needs five
)
def test_a_run_reads_its_documents_with_no_more_lanes_than_make_that_shorter(
    monkeypatch, lanes, read, batches
):
    shapes = []
    watch_steps(monkeypatch, lambda batch: shapes.append(batch.inputs.shape))
    run(lanes, 2 * WINDOW)
    assert shapes == [(read, 2 * WINDOW)] * batches


def test_the_next_batch_is_on_its_way_before_figures_are_waited_for(monkeypatch):
    started, waited = [], []
    watch_steps(monkeypatch, lambda batch: started.append(len(waited)))
    run(2, 2 * WINDOW, progress=waited.append)
    assert len(started) == len(waited) > 2
    assert started == [0, *range(len(started) - 1)]


def test_derived_figures_follow_their_formulas():
    result = Evaluation(nats=300 * math.log(2), tokens=100, bytes=150, words=20)
    assert result.bits_per_token == pytest.approx(3)
    assert result.perplexity == pytest.approx(2**3)
    assert result.bits_per_byte == pytest.approx(2)
    assert result.word_perplexity == pytest.approx(2**15)
    figures = result.metrics()
    assert list(figures) == [
        *("nats", "tokens", "bytes", "words", "lost"),
        *("bits_per_token", "perplexity", "bits_per_byte", "word_perplexity"),
    ]
    assert all(figures[name] == getattr(result, name) for name in figures)


def test_perplexity_is_a_number_whatever_the_text_and_the_loss():
    assert Evaluation(1e6, 10, 10, 1).word_perplexity == math.inf
    assert Evaluation(1e6, 10, 10, 1).perplexity == math.inf
    assert math.isnan(Evaluation(math.nan, 10, 10, 1).perplexity)
    assert math.isfinite(Evaluation(1.0, 10, 10, 0).word_perplexity)


def test_the_model_is_left_as_it_was():
    run(2, 2 * WINDOW)
    assert not any(array.is_deleted() for array in jax.tree.leaves(MODEL))
