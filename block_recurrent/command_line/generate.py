"""Continues a text with a trained model, as the start of a document.

block-recurrent generate --workdir=runs/rec --prompt="import os" --top_p=0.95
block-recurrent generate --workdir=runs/rec --prompt_file=start.py
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from block_recurrent.command_line.failures import knobs_named, reported
from block_recurrent.command_line.options import add_checkpoint_option, file_to_read, positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Tokenizer
from block_recurrent.data.documents import replace_lone_surrogates
from block_recurrent.model.decoding import check_sampling, generate
from block_recurrent.parallel.mesh import make_mesh, reading_mesh
from block_recurrent.runs.trained import load
from block_recurrent.runs.workdir import config_file
from block_recurrent.system.devices import check_device
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import stop_on_signal

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
# Tokens before a piece of text that may decide how it is written: the space before a word.
CONTEXT = 8


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    add_checkpoint_option(parser)
    prompt = parser.add_mutually_exclusive_group().add_argument
    prompt("--prompt", metavar="TEXT", help="the text to continue")
    prompt(
        "--prompt_file",
        type=file_to_read,
        default=Path("-"),
        metavar="FILE",
        help="a file with the text, or - for standard input (unless given)",
    )
    parser.add_argument("--max_new_tokens", type=positive, default=512)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest")
    parser.add_argument("--top_k", type=positive)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=positive, default=1, help="continuations of the prompt")
    arguments, config = parse(parser, argv, lambda found: [config_file(found.workdir)])
    sampling = {name: getattr(arguments, name) for name in SAMPLING}
    try:
        check_sampling(**sampling)
    except ValueError as error:
        parser.error(str(error))
    knobs = {"--samples": arguments.samples, "model.dtype = 'bfloat16'": config.model.dtype}
    with stop_on_signal(nothing_to_save=True), knobs_named(knobs):
        check_device()
        _continue_text(arguments, config, sampling)
    return 0


def _continue_text(
    arguments: argparse.Namespace, config: ExperimentConfig, sampling: dict[str, Any]
) -> None:
    """Prints continuations of the prompt; a single one as it is drawn."""
    mesh = make_mesh(dataclasses.replace(reading_mesh(config.mesh), data=1))
    trained = load(arguments.workdir, arguments.checkpoint, config=config, mesh=mesh)
    text = read_prompt(arguments.prompt_file) if arguments.prompt is None else arguments.prompt
    prompt, samples = encode_prompt(text, trained.tokenizer), arguments.samples
    stream, line = Stream(trained.tokenizer, prompt), ProgressLine()

    def take(tokens: np.ndarray) -> None:
        line.compiled("the generation of a token")
        if samples == 1:
            stream(tokens)

    line.compiling("the generation of a token")
    new_tokens = generate(
        trained.model,
        trained.model.initial_state(samples),
        jnp.tile(prompt, (samples, 1)),
        callback=take,
        **sampling,
    )
    if samples == 1:
        stream.flush()
        print()
        return
    for number, row in enumerate(np.asarray(new_tokens), 1):
        print(f"--- {number} ---\n{text_after(trained.tokenizer, prompt, row)}")


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
