"""Word-level perplexity on PG19 from work directories, beside the paper's Table 2.

    python experiments/table2.py runs/pg19_rec_650m

The perplexity is exp(nats of all documents / words). The published counts of words are used where
`experiments/evaluate.py` scored a whole split; elsewhere the words of the documents scored are.
"""

import sys
from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.command_line.workdirs import parse_runs
from block_recurrent.lab.tables.table2 import report


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    arguments, found = parse_runs(parser, argv, "runs/table2")
    report(found, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
