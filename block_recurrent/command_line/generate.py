"""Continues a text with a trained model, as the start of a document.

block-recurrent generate --workdir=runs/rec --prompt="import os" --top_p=0.95
block-recurrent generate --workdir=runs/rec --prompt_file=start.py
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from block_recurrent.command_line.failures import knobs_named, reported
from block_recurrent.command_line.generated_text import (
    Stream,
    encode_prompt,
    read_prompt,
    text_after,
)
from block_recurrent.command_line.options import add_checkpoint_option, file_to_read, positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.model.decoding import check_sampling, generate
from block_recurrent.parallel.mesh import make_mesh, reading_mesh
from block_recurrent.runs.trained import load
from block_recurrent.runs.workdir import config_file
from block_recurrent.system.devices import check_device
from block_recurrent.system.signals import stop_on_signal

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


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
    stream = Stream(trained.tokenizer, prompt)
    new_tokens = generate(
        trained.model,
        trained.model.initial_state(samples),
        jnp.tile(prompt, (samples, 1)),
        callback=stream if samples == 1 else None,
        **sampling,
    )
    if samples == 1:
        stream.flush()
        print()
        return
    for number, row in enumerate(np.asarray(new_tokens), 1):
        print(f"--- {number} ---\n{text_after(trained.tokenizer, prompt, row)}")
