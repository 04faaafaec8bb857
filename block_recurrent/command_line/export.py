"""Writes a trained model to one file in safetensors format, with its configuration.

    block-recurrent export --workdir=runs/rec --output=rec.safetensors

`block_recurrent.load_safetensors` reads it. The tensors' names are paths in the model. The metadata
have the configuration as gin text, paths of files included.
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.options import add_checkpoint_option, file_to_write
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs.exported import save_safetensors
from block_recurrent.runs.trained import load
from block_recurrent.runs.workdir import config_file


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    add_checkpoint_option(parser)
    parser.add_argument(
        "--output", required=True, type=file_to_write, metavar="FILE", help="file to write"
    )
    arguments, config = parse(parser, argv, lambda found: [config_file(found.workdir)])
    trained = load(arguments.workdir, arguments.checkpoint, config=config)
    save_safetensors(trained, arguments.output)
    parameters = f"{count_parameters(trained.model):,} parameters of step {trained.step:,}"
    print(f"{arguments.output}: {parameters}, {arguments.output.stat().st_size / 1e6:,.1f} MB")
    return 0
