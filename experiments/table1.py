"""The paper's Table 1 from work directories, beside the paper's figures.

    python experiments/table1.py runs/rec runs/slide_13l

A row without a run stays empty; what a run that is not finished has reached is marked with its
step. Runs of other sizes, and on other corpora, stand in tables of their own.
"""

import sys
from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.command_line.workdirs import parse_runs
from block_recurrent.lab.tables.table1 import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    arguments, found = parse_runs(parser, argv, "runs/table1")
    report(found, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
