"""Evaluation: every token of every document once, exactly."""

import math
from collections.abc import Callable, Iterator
from itertools import tee
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from block_recurrent.config import DataConfig, ExperimentConfig
from block_recurrent.data import Batch, TokenizedCorpus, evaluation_batches
from block_recurrent.model.protocol import CarriedState, Model
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import (
    batch_shards,
    carried_sharding,
    make_mesh,
    put,
    put_batch,
    rows_of_process,
)
from block_recurrent.training.step import model_sharding, segment_loss


def _exp(exponent: float) -> float:
    return math.inf if exponent > 700 else math.exp(exponent)


class Evaluation(NamedTuple):
    """Sums over a corpus, and the metrics that follow from them.

    The sums are over tokens, never over batches, so they depend neither on the batch size nor on
    the segment length.

    Attributes:
      nats: total negative log-likelihood.
      tokens: targets scored.
      bytes: UTF-8 bytes of the documents.
      words: whitespace-separated words of the documents.
      lost: bytes that the vocabulary loses, see `TokenizedCorpus`.
    """

    nats: float
    tokens: int
    bytes: int
    words: int
    lost: int = 0

    @property
    def bits_per_token(self) -> float:
        """log2 of the perplexity."""
        return self.nats / self.tokens / math.log(2)

    @property
    def perplexity(self) -> float:
        """Per token; infinite where it overflows."""
        return _exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers that lose no text."""
        return self.nats / self.bytes / math.log(2)

    @property
    def word_perplexity(self) -> float:
        """exp(total nats / words), as published for PG19; infinite where it overflows."""
        return _exp(self.nats / max(self.words, 1))

    def metrics(self) -> dict[str, float]:
        """All sums and metrics, by name."""
        derived = ("bits_per_token", "perplexity", "bits_per_byte", "word_perplexity")
        return self._asdict() | {name: getattr(self, name) for name in derived}

    def describe(self) -> str:
        """The most important metrics, as text."""
        return (
            f"{self.bits_per_token:.4f} bits/token, {self.bits_per_byte:.4f} bits/byte"
            f"{' of a text that lost bytes' if self.lost else ''}, "
            f"perplexity {self.perplexity:.3f} ({self.tokens:,} tokens)"
        )


@jax.jit(donate_argnums=1, static_argnames="clear_states")
def evaluation_step(
    model: Model, carried: CarriedState, batch: Batch, *, clear_states: bool = False
) -> tuple[CarriedState, Array, Array]:
    """Reads one segment of every row: the next state, summed nats and number of targets."""
    _, (nats, targets, carried) = segment_loss(model, carried, batch, clear_states=clear_states)
    return carried, nats, targets


def evaluate(
    config: ExperimentConfig,
    model: Model,
    corpus: TokenizedCorpus,
    progress: Callable[[float], object] = lambda share: None,
    *,
    batch_size: int | None = None,
) -> Evaluation:
    """Scores a corpus on the mesh of a run.

    Args:
      config: of the run. The metrics depend on its segment length only with
        `training.clear_states` and for Transformer-XL as in its own paper, and never on the lanes.
      model: the language model.
      corpus: the documents.
      progress: called after each batch with the share of the tokens that has been scored; an error
        that it raises ends the evaluation.
      batch_size: the number of lanes; unless given, those that training computes at a time or fewer
        (`busy_lanes`).

    Returns:
      Sums over all targets, added up in float64 between batches.
    """
    data = config.data
    most = config.microbatch_size
    mesh = make_mesh(config.mesh, batch_size or most, exact=processes.several())
    lanes = batch_size or busy_lanes(data, corpus, most, batch_shards(mesh))
    model = put(model, model_sharding(mesh, model))
    rows = rows_of_process(mesh, lanes)
    batches = evaluation_batches(
        corpus, lanes, data.segment_length, config.model.vocab_size, rows=rows
    )

    def score() -> Iterator[tuple[Array, Array]]:
        carried = initial_carried(model, lanes, mesh)
        for batch in batches:
            batch = put_batch(batch, mesh, lanes)
            carried, nats, tokens = evaluation_step(
                model, carried, batch, clear_states=config.training.clear_states
            )
            yield nats, tokens

    nats, tokens = 0.0, 0
    started, scored = tee(score())
    next(started, None)
    for more_nats, more_tokens in scored:
        next(started, None)  # starts the next batch before it waits for this one
        nats += float(more_nats)
        tokens += int(more_tokens)
        progress(tokens / len(corpus.tokens))
    sums = int(corpus.byte_counts.sum()), int(corpus.word_counts.sum())
    return Evaluation(nats, tokens, *sums, corpus.lost)


def initial_carried(model: Model, batch_size: int, mesh: Mesh) -> CarriedState:
    """The state at a document's start, sharded over the mesh that the model is on."""
    if not processes.several():
        carried = model.initial_state(batch_size)
        return put(carried, carried_sharding(mesh, carried))

    def initial(model: Model) -> CarriedState:
        return model.initial_state(batch_size)

    shardings = carried_sharding(mesh, jax.eval_shape(initial, model))
    return jax.jit(initial, out_shardings=shardings)(model)


def busy_lanes(data: DataConfig, corpus: TokenizedCorpus, most: int, fewest: int = 1) -> int:
    """`most` lanes, halved as long as that does not make a corpus slower to read.

    The longest document takes the same time however many lanes are idle beside it.
    """
    segments = _segments(data, corpus)
    busy = -(-int(segments.sum()) // int(segments.max(initial=1)))
    lanes = most
    while lanes % (2 * fewest) == 0 and lanes // 2 >= busy:
        lanes //= 2
    return lanes


def _segments(data: DataConfig, corpus: TokenizedCorpus) -> np.ndarray:
    """How many segments each document has, [documents]."""
    return -(-np.diff(corpus.ends, prepend=0) // data.segment_length)


def evaluation_steps(config: ExperimentConfig, corpus: TokenizedCorpus) -> float:
    """About how many training steps take as long as an evaluation; forward is a third of a step."""
    segments = _segments(config.data, corpus)
    lanes = busy_lanes(config.data, corpus, config.microbatch_size)
    rows = max(int(segments.sum()), lanes * int(segments.max(initial=0)))
    return rows / config.data.batch_size / 3


def scoring_lanes(config: ExperimentConfig, corpus: TokenizedCorpus, fewest: int = 1) -> int:
    """The number of lanes for reading a corpus without training.

    It is twice the number that training computes at a time, or fewer: a forward pass alone needs
    less memory than one with a backward pass.
    """
    return busy_lanes(config.data, corpus, 2 * config.microbatch_size, fewest)
