"""Validation bits per byte against training tokens seen, over seeds, and paired differences.

    python experiments/curves.py runs/rec_seed_* runs/slide_seed_* --against=Slide

    python experiments/curves.py runs/window_* --against=Slide --by=model.window

Runs that differ only in their seeds are one row. A difference is taken between runs of the same
seeds, the row's figure minus the reference's, so below zero the row is better. With `--by` runs are
compared where that parameter is equal, and the picture shows the differences against it.
"""

import sys
from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.command_line.workdirs import parse_runs
from block_recurrent.gin_files import PARAMETERS
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


if __name__ == "__main__":
    sys.exit(main())
