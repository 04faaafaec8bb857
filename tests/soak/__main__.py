"""Kills a training run again and again, and checks that it survives every time.

    make soak                                      200 kills, then 20 of several processes
    python -m tests.soak --kills=20
    python -m tests.soak --cluster --kills=20     of several processes that train together

`tests/soak/soak.py` and `cluster_soak.py` list the laws. The status is 1 if a law was broken; the
work directory is then left unchanged.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import stop_on_signal
from tests.soak.cluster_soak import cluster_soak
from tests.soak.processes import Failure, Plan
from tests.soak.soak import soak


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--cluster", action="store_true", help="kill one of several processes")
    parser.add_argument("--workdir", type=Path, default=Path("runs/soak"), help="runs/soak")
    options = parser.parse_args(argv)
    line = ProgressLine()
    with stop_on_signal() as stop:
        try:
            plan = Plan(options.workdir, options.kills, options.seed, stop, line.show)
            found = cluster_soak(plan) if options.cluster else soak(plan)
        except Failure as failure:
            line.end()
            print(f"{parser.prog}: failed: {failure}", file=sys.stderr)
            return 1
    line.end()
    print(found.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
