"""What is measured of evaluation and generation, at a tiny size."""

import pytest

from block_recurrent.config import DataConfig, ExperimentConfig
from block_recurrent.lab.benchmark import inference
from tests.helpers import SIZES, model_config

CONFIG = ExperimentConfig(
    model=model_config(1, vocab_size=256),
    data=DataConfig(batch_size=2, segment_length=2 * SIZES["window"]),
)


def test_an_evaluation_beside_its_forward_pass():
    figures = inference.measure_evaluation(CONFIG, rounds=3)
    assert figures["lanes"] == 4
    speeds = figures["tokens_per_second"], figures["forward_tokens_per_second"]
    assert min(speeds) > 0 and figures["rate_to_forward"] > 0


def test_random_documents_are_scored_in_as_many_batches_as_one_has_segments():
    corpus = inference.random_corpus(4, 3 * CONFIG.data.segment_length, 256)
    shares: list[float] = []
    result = inference.evaluate(
        CONFIG, inference.make_model(CONFIG), corpus, shares.append, batch_size=4
    )
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert result.tokens == len(corpus.tokens) and result.bits_per_token > 8


def test_a_context_carried_beside_one_read_anew():
    figures = inference.measure_carrying(CONFIG, rounds=1)
    window = SIZES["window"]
    lengths = [f"times_less_at_{windows * window}" for windows in (1, 4, 16)]
    assert set(figures) == {"microseconds_a_token", *lengths}
    assert min(figures.values()) > 0


def test_generating_one_row_and_many(monkeypatch):
    monkeypatch.setattr(inference, "POSITIONS", (5, 9))
    figures = inference.measure_generation(CONFIG, tokens=4, rounds=1)
    assert set(figures) == {
        *("tokens_per_second_at_5", "tokens_per_second_at_9"),
        *("late_to_early_time", "tokens_per_second_of_64_rows"),
    }
    assert min(figures.values()) > 0
