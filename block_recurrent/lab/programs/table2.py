"""Word-level perplexity on PG19 from work directories, beside the paper's Table 2.

    block-recurrent table2 runs/pg19_rec_650m

The perplexity is exp(nats of all documents / words). The published counts of words are used if
`block-recurrent evaluate` scored a whole split; else the words of the scored documents are counted.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.programs.options import parse_runs
from block_recurrent.lab.tables.table2 import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    arguments, found = parse_runs(parser, argv, "runs/table2")
    report(found, arguments.output)
    return 0
