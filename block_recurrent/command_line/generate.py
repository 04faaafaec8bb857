"""Continues a text with a trained model, as the start of a document.

A model that was trained with data.end_of_document ends the text where it finds that it ends.

block-recurrent generate --workdir=runs/rec --prompt="import os" --top_p=0.95
block-recurrent generate --workdir=runs/rec --prompt_file=start.py --stop="def "
"""

import argparse
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

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

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
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
    parser.add_argument(
        "--min_p", type=float, help="no token below this share of the largest probability"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=stop_text,
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
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
    state, prompts = trained.model.initial_state(samples), jnp.tile(prompt, (samples, 1))
    files = [sys.stdout] if samples == 1 else [io.StringIO() for _ in range(samples)]
    ends = [trained.tokenizer.beginning_of_document] if config.data.end_of_document else []
    streams = [Stream(trained.tokenizer, prompt, file, arguments.stop, ends) for file in files]
    line = ProgressLine()

    def take(tokens: np.ndarray) -> bool:
        line.compiled("the generation of a token")
        ended = [stream(row) for stream, row in zip(streams, tokens[:, None], strict=True)]
        return all(ended)

    at_once = samples > 1 and not arguments.stop
    line.compiling("the generation of a token")
    new_tokens = generate(
        trained.model,
        state,
        prompts,
        stop_tokens=ends,
        callback=None if at_once else take,
        **sampling,
    )
    for number, (stream, file) in enumerate(zip(streams, files, strict=True)):
        if at_once:
            stream(np.asarray(new_tokens[number]))
        stream.finish()
        print(f"--- {number + 1} ---\n{file.getvalue()}" if isinstance(file, io.StringIO) else "")


def text_after(tokenizer: Tokenizer, before: np.ndarray, tokens: np.ndarray) -> str:
    """The text of `tokens`, [n], where they follow the tokens `before`, [m]."""
    context = before[-CONTEXT:]
    return tokenizer.decode(np.concatenate([context, tokens]))[len(tokenizer.decode(context)) :]


class Stream:
    """Writes tokens as text as they come, a character as soon as it is complete.

    Args:
      tokenizer: of the tokens.
      prompt: the tokens before them, [P] int32.
      file: where the text goes.
      stops: the text ends before the first of these that comes; what may be its beginning is
        written when it is known that it is not.
      stop_tokens: the text ends before the first of these, too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: np.ndarray,
        file: TextIO,
        stops: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
    ):
        self._tokenizer = tokenizer
        self._file = file
        self._stops = stops
        self._stop_tokens = stop_tokens
        self._read = prompt  # tokens whose text has been taken
        self._tokens = prompt[:0]  # tokens whose text may be a part of a character
        self._held = ""  # text that may be the beginning of a stop
        self._ended = False

    def __call__(self, tokens: np.ndarray) -> bool:
        """Takes the next tokens, [n] int32; returns whether a stop has come."""
        ends = np.isin(tokens, np.asarray(self._stop_tokens, np.int32))
        last = int(ends.argmax()) if ends.any() else len(tokens)
        self._tokens = np.concatenate([self._tokens, tokens[:last]])
        if ends.any():
            self.finish()
            self._ended = True
        if not self._ended and not self._text().endswith("\N{REPLACEMENT CHARACTER}"):
            self._take()
        return self._ended

    def finish(self) -> None:
        """Writes what is left, even part of a character."""
        self._take()
        self._write(self._held)

    def _take(self) -> None:
        """Turns the tokens into text, and writes it up to what may be a stop."""
        text = self._held + self._text()
        self._read = np.concatenate([self._read, self._tokens])[-CONTEXT:]
        self._tokens = self._tokens[:0]
        found = [text.index(stop) for stop in self._stops if stop in text]
        end = min(found) if found else len(text) - unfinished(text, self._stops)
        self._write(text[:end])
        self._held, self._ended = "" if found else text[end:], self._ended or bool(found)

    def _write(self, text: str) -> None:
        if not self._ended:
            self._file.write(text)
            self._file.flush()

    def _text(self) -> str:
        return text_after(self._tokenizer, self._read, self._tokens)


def unfinished(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    begun = (stop[:length] for stop in stops for length in range(1, len(stop)))
    return max((len(part) for part in begun if text.endswith(part)), default=0)


def stop_text(text: str) -> str:
    """A text that ends a sample."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def read_prompt(path: Path) -> str:
    """The text of a file or, for "-", of standard input, which may be closed."""
    if str(path) != "-":
        return path.read_bytes().decode("utf-8", errors="replace")
    return sys.stdin.buffer.read().decode("utf-8", errors="replace") if sys.stdin else ""


def encode_prompt(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The beginning of a document and the tokens of a text, [P]; lone surrogates are U+FFFD."""
    tokens = tokenizer.encode(replace_lone_surrogates(text)[0])
    return np.concatenate([[tokenizer.beginning_of_document], tokens]).astype(np.int32)
