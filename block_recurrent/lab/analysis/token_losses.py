"""The loss of every token of every document, and its mean by position in the document.

Needs no more of a model than the protocol: `initial_state`, `features`, `logits`, and
`config.vocab_size`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.data import Batch, TokenizedCorpus
from block_recurrent.data.lanes import Lane, LaneReader, evaluation_lanes
from block_recurrent.model.state import clear_recurrent
from block_recurrent.training.loss import target_nats

LOGITS_AT_ONCE = 2**26  # how many exist at the same time, if segments can be halved so often
SAMPLES = 2000  # of the bootstrap
Progress = Callable[[float], object]
Lanes = Sequence[Lane | None]


class Reach(NamedTuple):
    """How far back a model's attention sees.

    Attributes:
      window: tokens before its own that one layer sees at least: a window, or Transformer-XL's
        memory; 0 for other models.
      reach: tokens from which anything can come through the windows of all layers.
    """

    window: int
    reach: int


def reach_of(config: Any) -> Reach:
    """The reach of a model's configuration, whatever its architecture."""
    window = getattr(config, "window", None) or getattr(config, "memory", 0)
    return Reach(window, window * config.num_layers)


def nats_of(model: Any, features: Array, targets: Array) -> Array:
    """The loss of every target: features [B, N, E], [B, N] integers -> [B, N] nats."""
    batch, length, _ = features.shape
    size = length
    while size % 2 == 0 and batch * size * model.config.vocab_size > LOGITS_AT_ONCE:
        size //= 2

    def nats(start: Array) -> Array:
        piece = jax.lax.dynamic_slice_in_dim(features, start, size, axis=1)
        chosen = jax.lax.dynamic_slice_in_dim(targets, start, size, axis=1)
        return target_nats(model.logits(piece), chosen)

    by_piece = jax.lax.map(nats, jnp.arange(0, length, size))
    return jnp.moveaxis(by_piece, 0, 1).reshape(targets.shape)


@jax.jit(donate_argnums=1, static_argnames="clear_states")
def read_segment(
    model: Any, carried: Any, batch: Batch, *, clear_states: bool
) -> tuple[Any, Array]:
    """Reads one segment of every lane: the next state, and the loss of its targets [B, N]."""
    if clear_states:
        carried = clear_recurrent(carried, model.initial_state(len(batch.inputs)))
    start = batch.start_of_document
    features, carried = model.features(batch.inputs, carried, start_of_document=start)
    return carried, nats_of(model, features, jnp.asarray(batch.targets))


def token_losses(
    model: Any,
    corpus: TokenizedCorpus,
    *,
    lanes: int,
    segment_length: int,
    clear_states: bool = False,
    progress: Progress = lambda share: None,
) -> list[np.ndarray]:
    """The loss of every token in nats, each document read from its start, the state carried.

    The losses of all tokens together are the nats of `evaluate`.

    Args:
      model: the language model.
      corpus: the documents.
      lanes: how many are read at once.
      segment_length: N, tokens of a lane that are read at once.
      clear_states: clear the recurrent states before every segment.
      progress: called with the share of the tokens that have been read.

    Returns:
      For each of the D documents, [n] float32, n its number of tokens.
    """
    carried, losses = model.initial_state(lanes), empty_losses(corpus)
    for standing, batch in read_documents(model, corpus, lanes, segment_length, progress):
        carried, nats = read_segment(model, carried, batch, clear_states=clear_states)
        put_losses(losses, standing, np.asarray(nats))
    return losses


def read_documents(
    model: Any, corpus: TokenizedCorpus, lanes: int, segment_length: int, progress: Progress
) -> Iterator[tuple[Lanes, Batch]]:
    """Every segment of the documents, each read from its start: where lanes are, and the batch."""
    reader, done = LaneReader(corpus, lanes, segment_length, model.config.vocab_size), 0
    for standing in evaluation_lanes(reader):
        batch = reader.batch(standing)
        yield standing, batch
        done += int(batch.mask.sum())
        progress(done / len(corpus.tokens))


def empty_losses(corpus: TokenizedCorpus) -> list[np.ndarray]:
    """The losses of no token yet: NaN for every one."""
    return [np.full(corpus.length(index), np.nan, np.float32) for index in range(len(corpus))]


def put_losses(losses: list[np.ndarray], lanes: Lanes, nats: np.ndarray) -> None:
    """Puts the losses [B, N] of what lanes have read where they belong."""
    for lane, row in zip(lanes, nats, strict=True):
        if lane is not None:
            own = losses[lane.part][lane.offset : lane.offset + len(row)]
            own[:] = row[: len(own)]


def position_edges(longest: int, first: int = 64) -> np.ndarray:
    """0, `first`, and its doubles up to the first that is not below `longest`."""
    doublings = max(0, math.ceil(math.log2(max(longest, 1) / first)))
    return np.array([0, *(first * 2**power for power in range(doublings + 1))])


def sums_by_position(
    losses: Sequence[np.ndarray], edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the losses and numbers of tokens between edges, of each document: [D, len(edges)-1].

    A bin holds the positions `edges[i] <= position < edges[i + 1]`, counted from 0.
    """
    bins = [np.searchsorted(edges, np.arange(len(nats)), side="right") - 1 for nats in losses]
    return sums_by_group(losses, bins, len(edges) - 1)


def sums_by_group(
    losses: Sequence[np.ndarray], groups: Sequence[np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the losses and numbers of tokens in each of `number` groups, of each document."""
    sums, counts = np.zeros((2, len(losses), number))
    for document, (nats, group) in enumerate(zip(losses, groups, strict=True)):
        sums[document] = np.bincount(group, nats, number)
        counts[document] = np.bincount(group, minlength=number)
    return sums, counts


class Estimate(NamedTuple):
    """A mean over tokens or words, NaN where there are none.

    Attributes:
      mean: [...].
      low: lower end of the 95 % interval over documents, [...]; NaN for a single document.
      high: its upper end.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def estimate(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """A ratio of sums over documents, with a percentile bootstrap that resamples whole documents.

    Tokens of a document are not independent of each other, documents are.

    Args:
      sums: of each document, [D, ...].
      counts: what the sums are over, [D, ...].
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    documents = len(sums)
    mean = _ratio(sums.sum(0), counts.sum(0))
    if documents < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    drawn = np.random.default_rng(0).multinomial(
        documents, np.full(documents, 1 / documents), SAMPLES
    )
    ratios = _ratio(np.tensordot(drawn, sums, 1), np.tensordot(drawn, counts, 1))
    # A sample may have no token of a bin that few documents reach; it says nothing of the bin.
    ratios = np.where(np.isnan(ratios), mean, ratios)
    # A single document in a bin has no spread to speak of.
    several = (counts > 0).sum(0) > 1
    low, high = (np.where(several, np.quantile(ratios, q, axis=0), np.nan) for q in (0.025, 0.975))
    return Estimate(mean, low, high)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
