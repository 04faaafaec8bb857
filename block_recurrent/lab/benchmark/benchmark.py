"""Measures rows of the table in turn: steps, compilation, memory, depth; then inference.

    block-recurrent benchmark
    block-recurrent benchmark --gin_file=sizes/paper.gin --gin.data.batch_size=8 \\
        --gin.model.vocab_size=32000 --rows XL:2048,Rec:fixed:skip,Feedback:fixed:skip

Rows take their steps in turn in one process, round by round. Every ratio is the median over rounds
of a row's time to that of the sliding-window model with one layer more. The program then measures
evaluation beside the forward pass alone, the cost of a scored token with a carried context and with
one that is read anew, generation of one row and of 64, and checkpoints.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.lab.benchmark.report import DEFAULT_ROWS, benchmark, choose_rows
from block_recurrent.system.devices import check_device


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", default=DEFAULT_ROWS, help="the paper's names, by commas")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each row")
    parser.add_argument("--output", type=Path, help="also write the figures here, as JSON")
    arguments, base = parse(parser, argv, lambda found: [] if found.gin_file else ["benchmark.gin"])
    rows = choose_rows(base, arguments.rows)
    check_device()
    figures = benchmark(base, rows, arguments.rounds)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0
