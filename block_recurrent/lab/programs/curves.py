"""Validation bits per byte against training tokens, over seeds, and paired differences.

    block-recurrent curves runs/rec_seed_* runs/slide_seed_* --against=Slide

    block-recurrent curves runs/window_* --against=Slide --by=model.window

Runs that differ only in their seeds are one row. A difference is taken between runs with the same
seed, the row's figure minus the reference's: below zero the row is better. With `--by`, runs are
compared if that parameter is equal, and the picture shows the differences against it.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.gin_files import PARAMETERS
from block_recurrent.lab.programs.options import parse_runs
from block_recurrent.lab.tables.curves import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--against", default="Slide", metavar="ROW", help="reference row, or how its name begins"
    )
    parser.add_argument(
        "--by", choices=PARAMETERS, metavar="PARAMETER", help="such as model.window"
    )
    arguments, found = parse_runs(parser, argv, "runs/curves")
    report(found, arguments.against, arguments.output, arguments.by)
    return 0
