"""Continues a text with a trained model, as the start of a document.

echo "import os" | python experiments/generate.py --workdir=runs/rec --top_p=0.95
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import block_recurrent as br
import configure
import errors
import workdir
from block_recurrent.data import Tokenizer
from block_recurrent.generation import check_sampling
from block_recurrent.training.experiment import make_run_tokenizer
from block_recurrent.training.signals import stop_on_signal
from options import Parser

# Tokens before a piece of text that may decide how it is written: the space before a word.
CONTEXT = 8


def text_after(tokenizer: Tokenizer, before: np.ndarray, tokens: np.ndarray) -> str:
    """The text of `tokens`, [n], where they follow the tokens `before`, [m]."""
    context = before[-CONTEXT:]
    return tokenizer.decode(np.concatenate([context, tokens]))[len(tokenizer.decode(context)) :]


class Stream:
    """Writes tokens as text as they come, a character as soon as it is whole."""

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
        """Writes what is left, whole or not."""
        sys.stdout.write(self._text())
        sys.stdout.flush()
        self._written = np.concatenate([self._written, self._tokens])[-CONTEXT:]
        self._tokens = self._tokens[:0]

    def _text(self) -> str:
        return text_after(self._tokenizer, self._written, self._tokens)


def positive(text: str) -> int:
    """An option's value, a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def check_prompt(path: str) -> None:
    """Raises ValueError unless a prompt can be read there."""
    try:
        if path != "-":
            Path(path).open("rb").close()
    except OSError as error:
        raise ValueError(f"--prompt={path}: {error.strerror}") from error


def read_prompt(path: str, tokenizer: Tokenizer) -> np.ndarray:
    """The beginning of a document and the text of a file or, for "-", of standard input: [P]."""
    text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    tokens = tokenizer.encode(text.decode("utf-8", errors="replace"))
    return np.concatenate([[tokenizer.beginning_of_document], tokens]).astype(np.int32)


def make_parser() -> Parser:
    """The program's command line."""
    parser = configure.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    workdir.add_checkpoint_option(parser)
    parser.add_argument("--prompt", default="-", metavar="FILE", help="a file, or - for stdin")
    parser.add_argument("--max_new_tokens", type=positive, default=512)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest")
    parser.add_argument("--top_k", type=positive)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=positive, default=1, help="continuations of the prompt")
    return parser


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser()
    arguments, config = configure.parse(
        parser, argv, lambda found: [workdir.config_file(found.workdir)]
    )
    try:
        check_sampling(
            arguments.max_new_tokens,
            arguments.temperature,
            arguments.top_k,
            arguments.top_p,
            arguments.seed,
        )
        check_prompt(arguments.prompt)
    except ValueError as error:
        parser.error(str(error))
    knobs = {"--samples": arguments.samples, "model.dtype = 'bfloat16'": config.model.dtype}
    with stop_on_signal(nothing_to_save=True), errors.knobs_named(knobs):
        errors.check_device()
        _, model = workdir.restore_model(arguments.workdir, config, arguments.checkpoint)
        tokenizer = make_run_tokenizer(config)
        prompt = read_prompt(arguments.prompt, tokenizer)
        samples, stream = arguments.samples, Stream(tokenizer, prompt)
        new_tokens = br.generate(
            model,
            model.initial_state(samples),
            jnp.tile(prompt, (samples, 1)),
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            callback=stream if samples == 1 else None,
        )
    if samples == 1:
        stream.flush()
        print()
        return 0
    for index, row in enumerate(np.asarray(new_tokens)):
        print(f"--- {index + 1} ---\n{text_after(tokenizer, prompt, row)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
