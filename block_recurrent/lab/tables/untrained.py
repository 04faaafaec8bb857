"""Baselines that need no training: bits per byte of a compressor and of a counted byte model."""

import lzma
from collections.abc import Sequence

import numpy as np

from block_recurrent.data import Document


def lzma_bits_per_byte(documents: Sequence[Document]) -> float:
    """Bits per byte of LZMA at its highest preset, each document compressed on its own."""
    texts = [document.text.encode() for document in documents]
    preset = 9 | lzma.PRESET_EXTREME
    compressed = sum(len(lzma.compress(text, preset=preset)) for text in texts)
    return 8 * compressed / sum(map(len, texts))


class Order2Model:
    """A model of bytes with contexts of two bytes, counted over all training documents.

    Counts are smoothed with the model one order lower by Witten and Bell's rule: a context that
    occurred n times and was followed by t different bytes gives t / (n + t) to the lower order.
    """

    def __init__(self, train: Sequence[Document]):
        codes = np.concatenate([_codes(document) for document in train])
        counts = np.bincount(codes, minlength=256**3)
        self._orders = [_Order(counts.reshape(-1, 256**size).sum(0)) for size in (1, 2, 3)]

    def bits_per_byte(self, documents: Sequence[Document]) -> float:
        """Bits per byte of all documents together."""
        bits, total = 0.0, 0
        for document in documents:
            codes = _codes(document)
            probability = np.full(len(codes), 1 / 256)
            for order in self._orders:
                probability = order.smooth(codes, probability)
            bits -= float(np.log2(probability).sum())
            total += len(codes)
        return bits / total


def _codes(document: Document) -> np.ndarray:
    """Every byte with the two before it, zeros before the first, as one number."""
    text = np.frombuffer(b"\0\0" + document.text.encode(), np.uint8).astype(np.int64)
    return (text[:-2] * 256 + text[1:-1]) * 256 + text[2:]


class _Order:
    """What was counted of contexts of one length.

    Args:
      counts: by the context and the byte that follows it, as one number.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = counts
        self.totals = counts.reshape(-1, 256).sum(1)
        self.kinds = np.count_nonzero(counts.reshape(-1, 256), 1)

    def smooth(self, codes: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probabilities of bytes from those of the order below."""
        codes = codes % len(self.counts)
        totals, kinds = self.totals[codes // 256], self.kinds[codes // 256]
        smoothed = (self.counts[codes] + kinds * lower) / np.maximum(totals + kinds, 1)
        return np.where(totals > 0, smoothed, lower)
