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
        counts = np.bincount(_codes(train), minlength=256**3)
        # By the context and the byte that follows it, for contexts of no byte, of one and of two.
        self._counts = [counts.reshape(-1, 256**size).sum(0).reshape(-1, 256) for size in (1, 2, 3)]

    def bits_per_byte(self, documents: Sequence[Document]) -> float:
        """Bits per byte of all documents together."""
        codes = _codes(documents)
        probability = np.full(len(codes), 1 / 256)
        for counts in self._counts:
            context, byte = np.divmod(codes % counts.size, 256)
            totals, kinds = counts.sum(1)[context], np.count_nonzero(counts, 1)[context]
            smoothed = counts[context, byte] + kinds * probability
            smoothed /= np.maximum(totals + kinds, 1)
            probability = np.where(totals > 0, smoothed, probability)
        return -float(np.log2(probability).mean())


def _codes(documents: Sequence[Document]) -> np.ndarray:
    """Every byte with the two before it, zeros before a document, as one number."""
    codes = []
    for document in documents:
        text = np.frombuffer(b"\0\0" + document.text.encode(), np.uint8).astype(np.int64)
        codes.append((text[:-2] * 256 + text[1:-1]) * 256 + text[2:])
    return np.concatenate(codes)
