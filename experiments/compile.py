"""Compiles a run's training step for accelerators that need not be there, and says what it costs.

    python experiments/compile.py --topology=v5e:2x2 --gin_file=table1/pg19_bytes/rec_fixed_skip.gin
    python experiments/compile.py --topology=h100:8 --gin_file=scaling/350m_rec.gin --json=350m.json

Memory of a device, the compiler's estimate of cycles and what share of the chips' peak that is,
what the chips exchange, and the source lines that cost most. Lanes are shared out over all devices.
Status 6 says that the step does not fit. It needs Linux and the compiler, jax[tpu] or jax[cuda13],
but no accelerator, no data, and a few minutes for a model of the paper's size.

JAX runs on the CPU, whatever JAX_PLATFORMS says, and no TPU is looked for; these are set unless
they are: TPU_SKIP_MDS_QUERY, TPU_WORKER_HOSTNAMES, TPU_ACCELERATOR_TYPE, TPU_MIN_LOG_LEVEL, and
ALLOW_MULTIPLE_LIBTPU_LOAD, without which one process at a time can have the TPU's compiler.
"""

import sys
from collections.abc import Sequence

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.flags import make_parser, parse
from block_recurrent.command_line.values import file_to_write
from block_recurrent.lab.compile.compile_text import report
from block_recurrent.lab.compile.target import EXAMPLES, make_target


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--topology", required=True, help=f"chips, such as {EXAMPLES}")
    parser.add_argument("--json", type=file_to_write, help="also write the figures here, as JSON")
    arguments, config = parse(parser, argv, needs_data=lambda found: False)
    target = make_target(arguments.topology)
    with training_knobs_named(config):
        report(config, target, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
