"""Bits per token against parameters without embedding, for recurrent and plain models.

    block-recurrent scaling runs/*_rec runs/*_slide

A table and a panel for each corpus and tokenizer. The figures of an unfinished run are marked with
its step.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.programs.options import parse_runs
from block_recurrent.lab.tables.scaling import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    arguments, found = parse_runs(parser, argv, "runs/scaling")
    report(found, arguments.output)
    return 0
