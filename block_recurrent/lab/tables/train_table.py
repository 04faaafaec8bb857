"""Trains every row of the paper's Table 1 at a small size and prints the table.

    block-recurrent table            8 to 12 minutes on two cores
    block-recurrent table --long     the same rows, seven times longer

A process of its own trains each row, on the same tokens; on a CPU, as many at a time as there are
cores. The work directory keeps the results: the same command continues after a stop. `--row=NAME`
trains one row and nothing else, for instance on another machine.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.lab.tables.children import (
    count_cores,
    default_backend,
    stop_with_parent,
    use_one_core,
)
from block_recurrent.lab.tables.train import RowFailed, train_row, train_table
from block_recurrent.system.devices import check_device
from block_recurrent.system.progress import duration
from block_recurrent.system.signals import stop_on_signal


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    begin = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="train seven times longer")
    parser.add_argument("--workdir", type=Path, help="results; runs/table unless given")
    parser.add_argument("--row", metavar="NAME", help="train this row only")
    parser.add_argument(
        "--at_once", type=positive, metavar="N", help="rows trained at a time; as many as CPU cores"
    )
    arguments, base = parse(
        parser, words, lambda found: ["table_long.gin" if found.long else "table.gin"]
    )
    folder = arguments.workdir or Path("runs/table-long" if arguments.long else "runs/table")
    with stop_on_signal(nothing_to_save=True) as stop, training_knobs_named(base):
        if arguments.row:
            stop_with_parent()
            use_one_core()
            check_device()
            train_row(base, arguments.row, folder, stop)
            return 0
        command = [sys.executable, "-m", "block_recurrent", "table", *words]
        at_once = arguments.at_once or (count_cores() if default_backend() == "cpu" else 1)
        try:
            train_table(base, folder, command, at_once, stop)
        except RowFailed as failed:
            print(f"{failed}; the same command tries it again", file=sys.stderr)
            return failed.exit_status
    print(f"{duration(time.monotonic() - begin)} in all")
    return 0
