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


def order_2_bits_per_byte(train: Sequence[Document], documents: Sequence[Document]) -> float:
    """Bits per byte of a model with contexts of two bytes, counted over all training documents.

    Counts are smoothed with the model one order lower by Witten and Bell's rule: a context that was
    followed by t different bytes in n places gives t / (n + t) to the lower order.
    """
    pairs = [_contexts(document) for document in train]
    counts = np.zeros((256, 256, 256), np.int64)
    for first, second, byte in pairs:
        np.add.at(counts, (first, second, byte), 1)
    order_0 = _smooth(counts.sum((0, 1)), np.full(256, 1 / 256))
    order_1 = _smooth(counts.sum(0), order_0)
    order_2 = _smooth(counts, order_1)
    bits, total = 0.0, 0
    for document in documents:
        first, second, byte = _contexts(document)
        bits -= float(np.log2(order_2[first, second, byte]).sum())
        total += len(byte)
    return bits / total


def _contexts(document: Document) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every byte with the two before it, zeros before the first: three arrays [n]."""
    text = np.frombuffer(b"\0\0" + document.text.encode(), np.uint8)
    return text[:-2], text[1:-1], text[2:]


def _smooth(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Probabilities [..., 256] from counts [..., 256], `lower` being those of the order below."""
    places = counts.sum(-1, keepdims=True)
    kinds = (counts > 0).sum(-1, keepdims=True)
    smoothed = (counts + kinds * lower) / np.maximum(places + kinds, 1)
    return np.where(places > 0, smoothed, np.broadcast_to(lower, counts.shape))
