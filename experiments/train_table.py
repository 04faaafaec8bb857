"""Trains every row of the paper's Table 1 at a small size and prints the table.

    make table           about 14 minutes on two cores
    make table-long      the same rows, ten times longer

Rows are trained one after the other, on the same tokens of the standard library's source code, and
results are kept in the work directory: stopped and started again, it goes on where it was.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.flags import make_parser, parse
from block_recurrent.reports.train_table import train_table
from block_recurrent.system.devices import check_device
from block_recurrent.system.progress import duration
from block_recurrent.system.signals import stop_on_signal


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    begin = time.monotonic()
    parser = make_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="train ten times longer")
    parser.add_argument("--workdir", type=Path, help="results; runs/table unless given")
    arguments, base = parse(
        parser, argv, lambda found: ["table_long.gin" if found.long else "table.gin"]
    )
    folder = arguments.workdir or Path("runs/table-long" if arguments.long else "runs/table")
    with stop_on_signal(nothing_to_save=True) as stop, training_knobs_named(base):
        check_device()
        train_table(base, folder, stop)
    print(f"{duration(time.monotonic() - begin)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
