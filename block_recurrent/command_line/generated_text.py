"""Text from a trained model: reads a prompt and prints characters as soon as they are complete."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Tokenizer
from block_recurrent.model.decoding import generate
from block_recurrent.parallel.mesh import make_mesh, reading_mesh
from block_recurrent.runs.trained import NEWEST, load

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


def read_prompt(path: str, tokenizer: Tokenizer) -> np.ndarray:
    """The beginning of a document and the text of a file or, for "-", of standard input: [P]."""
    text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    tokens = tokenizer.encode(text.decode("utf-8", errors="replace"))
    return np.concatenate([[tokenizer.beginning_of_document], tokens]).astype(np.int32)


def continue_text(
    workdir: Path,
    config: ExperimentConfig,
    prompt: str,
    *,
    samples: int = 1,
    checkpoint: str | int = NEWEST,
    **sampling: Any,
) -> None:
    """Prints continuations of a text; a single one as it is drawn.

    Args:
      workdir: the run's directory.
      config: the run's configuration.
      prompt: a file, or "-" for standard input.
      samples: number of continuations.
      checkpoint: the `step` of `load`.
      sampling: arguments of `generate`.

    Raises:
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
      DataError: the vocabulary cannot be used.
    """
    mesh = make_mesh(dataclasses.replace(reading_mesh(config.mesh), data=1))
    model, _, tokenizer, _ = load(workdir, checkpoint, config=config, mesh=mesh)
    tokens = read_prompt(prompt, tokenizer)
    stream = Stream(tokenizer, tokens)
    new_tokens = generate(
        model,
        model.initial_state(samples),
        jnp.tile(tokens, (samples, 1)),
        callback=stream if samples == 1 else None,
        **sampling,
    )
    if samples == 1:
        stream.flush()
        print()
        return
    for number, row in enumerate(np.asarray(new_tokens), 1):
        print(f"--- {number} ---\n{text_after(tokenizer, tokens, row)}")
