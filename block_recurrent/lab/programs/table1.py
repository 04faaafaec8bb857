"""The paper's Table 1 from work directories, beside the paper's figures.

    block-recurrent table1 runs/rec runs/slide_13l

A row without a run stays empty. The figures of an unfinished run are marked with its step. Runs of
other sizes or on other corpora are in tables of their own.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.programs.options import parse_runs
from block_recurrent.lab.tables.table1 import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    arguments, found = parse_runs(parser, argv, "runs/table1")
    report(found, arguments.output)
    return 0
