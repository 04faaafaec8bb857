"""Tokens as text: reads a prompt, and prints characters as soon as they are complete."""

import sys
from pathlib import Path

import numpy as np

from block_recurrent.data import Tokenizer
from block_recurrent.data.documents import replace_lone_surrogates

# Tokens before a piece of text that may decide how it is written: the space before a word.
CONTEXT = 8


def text_after(tokenizer: Tokenizer, before: np.ndarray, tokens: np.ndarray) -> str:
    """The text of `tokens`, [n], where they follow the tokens `before`, [m]."""
    context = before[-CONTEXT:]
    return tokenizer.decode(np.concatenate([context, tokens]))[len(tokenizer.decode(context)) :]


class Stream:
    """Writes tokens as text as they come, a character as soon as it is complete."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray):
        self._tokenizer = tokenizer
        self._written = prompt
        self._tokens = prompt[:0]

    def __call__(self, tokens: np.ndarray) -> None:
        """Takes the next token, [1] int32."""
        self._tokens = np.concatenate([self._tokens, tokens])
        if not self._text().endswith("\N{REPLACEMENT CHARACTER}"):
            self.flush()

    def flush(self) -> None:
        """Writes what is left, even part of a character."""
        sys.stdout.write(self._text())
        sys.stdout.flush()
        self._written = np.concatenate([self._written, self._tokens])[-CONTEXT:]
        self._tokens = self._tokens[:0]

    def _text(self) -> str:
        return text_after(self._tokenizer, self._written, self._tokens)


def read_prompt(path: Path) -> str:
    """The text of a file or, for "-", of standard input, which may be closed."""
    if str(path) != "-":
        return path.read_bytes().decode("utf-8", errors="replace")
    return sys.stdin.buffer.read().decode("utf-8", errors="replace") if sys.stdin else ""


def encode_prompt(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The beginning of a document and the tokens of a text, [P]; lone surrogates are U+FFFD."""
    tokens = tokenizer.encode(replace_lone_surrogates(text)[0])
    return np.concatenate([[tokenizer.beginning_of_document], tokens]).astype(np.int32)
