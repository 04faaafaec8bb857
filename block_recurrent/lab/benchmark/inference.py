"""Timings of evaluation, of a carried context, and of generation."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import block_recurrent as br
from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.data import Batch, TokenizedCorpus, evaluation_batches
from block_recurrent.lab.benchmark.timing import ratio, time_in_turn
from block_recurrent.model.protocol import Model
from block_recurrent.training.build import make_model
from block_recurrent.training.evaluation import evaluate, evaluation_step, scoring_lanes

POSITIONS = (400, 4000)
CONTEXT_WINDOWS = (1, 4, 16)
MANY = 64  # batch rows that generate together


def random_corpus(documents: int, length: int, vocab_size: int) -> TokenizedCorpus:
    """Documents of one length, of uniformly random tokens."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, documents * length, np.int32)
    lengths = np.full(documents, length)
    return TokenizedCorpus(
        origin="random tokens",
        ids=[str(document) for document in range(documents)],
        tokens=tokens.astype(np.uint32),
        ends=np.cumsum(lengths),
        byte_counts=lengths,
        word_counts=lengths,
        tokenizer="none",
        vocab_size=vocab_size,
        beginning_of_document=0,
        lost=0,
        fingerprint="",
    )


def measure_evaluation(
    config: ExperimentConfig, segments: int = 4, rounds: int = 9
) -> dict[str, float]:
    """Tokens a second of an evaluation, relative to the forward pass alone.

    The forward pass reads the same number of segments and lanes, always the same batch, and fetches
    nothing from the device between them.
    """
    data, vocab_size = config.data, config.model.vocab_size
    corpus = random_corpus(2 * data.batch_size, segments * data.segment_length, vocab_size)
    lanes = scoring_lanes(config, corpus)
    model = make_model(config)
    batch = next(evaluation_batches(corpus, lanes, data.segment_length, vocab_size))
    batch = jax.device_put(batch._replace(start_of_document=np.zeros(lanes, np.bool_)))

    def forward() -> list[jax.Array]:
        carried, scored = model.initial_state(lanes), []
        for _ in range(segments):
            carried, nats, _ = evaluation_step(model, carried, batch)
            scored.append(nats)
        return scored

    runs = {
        "evaluation": lambda: evaluate(config, model, corpus, batch_size=lanes).nats,
        "forward": forward,
    }
    seconds = time_in_turn(runs, rounds)
    tokens = len(corpus.tokens)
    return {
        "lanes": lanes,
        "tokens_per_second": tokens / statistics.median(seconds["evaluation"]),
        "forward_tokens_per_second": tokens / statistics.median(seconds["forward"]),
        "rate_to_forward": ratio(seconds["forward"], seconds["evaluation"]),
    }


def measure_carrying(config: ExperimentConfig, rounds: int = 9) -> dict[str, float]:
    """How many times cheaper a scored token is with a carried context than with one read anew.

    With a carried context, a segment of every lane is read and all of its tokens are scored. Read
    anew, each token is scored at the end of a context of its own, as by models that carry nothing
    (Dai et al. 2019, section 4.6). `CONTEXT_WINDOWS` has the lengths of the contexts.

    Returns:
      Microseconds a token with a carried context, and the factor by length of the context.
    """
    data, model = config.data, make_model(config)
    assert isinstance(config.model, ModelConfig)
    contexts = [windows * config.model.window for windows in CONTEXT_WINDOWS]
    lengths = {str(length): length for length in (data.segment_length, *contexts)}
    runs = {name: _scoring(model, data.batch_size, length) for name, length in lengths.items()}
    seconds = time_in_turn(runs, rounds)
    carried = [spent / data.segment_length for spent in seconds[str(data.segment_length)]]
    figures = {"microseconds_a_token": statistics.median(carried) / data.batch_size * 1e6}
    return figures | {f"times_less_at_{c}": ratio(seconds[str(c)], carried) for c in contexts}


def _scoring(model: Model, lanes: int, length: int) -> Callable[[], Any]:
    """A function that scores the next `length` tokens of every lane."""
    tokens = np.ones((lanes, length), np.int32)
    batch = Batch(tokens, tokens, np.ones_like(tokens, np.bool_), np.zeros(lanes, np.bool_))
    batch = jax.device_put(batch)
    carried = model.initial_state(lanes)

    def run() -> Any:
        nonlocal carried
        carried, *scored = evaluation_step(model, carried, batch)
        return carried, scored

    return run


def measure_generation(
    config: ExperimentConfig, tokens: int = 256, rounds: int = 9
) -> dict[str, float]:
    """Tokens a second of one row after a short and a long prompt, their ratio; and of many rows."""
    model = make_model(config)
    early, late = POSITIONS
    runs = {
        "early": _generating(model, 1, early, tokens),
        "late": _generating(model, 1, late, tokens),
        "many": _generating(model, MANY, early, tokens),
    }
    seconds = time_in_turn(runs, rounds)
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    return {
        f"tokens_per_second_at_{early}": rates["early"],
        f"tokens_per_second_at_{late}": rates["late"],
        "late_to_early_time": ratio(seconds["late"], seconds["early"]),
        f"tokens_per_second_of_{MANY}_rows": MANY * rates["many"],
    }


def _generating(model: Model, rows: int, position: int, tokens: int) -> Callable[[], Any]:
    """A function that continues prompts of `position` tokens."""
    prompt = jnp.ones((rows, position), jnp.int32)
    point = br.prefill(model, model.initial_state(rows), prompt)[1]
    last = jnp.ones((rows, 1), jnp.int32)
    return lambda: br.generate(model, point, last, max_new_tokens=tokens)
