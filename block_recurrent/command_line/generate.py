"""Continues a text with a trained model, as the start of a document.

echo "import os" | block-recurrent generate --workdir=runs/rec --top_p=0.95
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import knobs_named, reported
from block_recurrent.command_line.generated_text import continue_text
from block_recurrent.command_line.options import add_checkpoint_option, file_to_read, positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.model.decoding import check_sampling
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
    parser.add_argument(
        "--prompt", type=file_to_read, default="-", metavar="FILE", help="a file, or - for stdin"
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
        continue_text(
            arguments.workdir,
            config,
            arguments.prompt,
            samples=arguments.samples,
            checkpoint=arguments.checkpoint,
            **sampling,
        )
    return 0
