"""Means over tokens with their uncertainty over documents."""

from typing import NamedTuple

import numpy as np

SAMPLES = 2000


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


def estimate(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> Estimate:
    """A ratio of sums over documents, with a percentile bootstrap that resamples whole documents.

    Tokens of a document are not independent of each other, documents are.

    Args:
      sums: of each document, [D, ...].
      counts: what the sums are over, [D, ...].
      seed: of the samples.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    documents = len(sums)
    mean = _ratio(sums.sum(0), counts.sum(0))
    if documents < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    drawn = np.random.default_rng(seed).multinomial(
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
