"""Compiles a run's training step for accelerators that are not there, and shows its costs.

    block-recurrent compile --topology=v5e:2x2 --gin_file=table1/pg19_bytes/rec_fixed_skip.gin
    block-recurrent compile --topology=h100:8 --gin_file=scaling/350m_rec.gin --json=350m.json

It prints the memory of a device, the compiler's estimate of cycles, their share of the chips' peak,
the collectives, and the source lines that cost most. The batch is sharded over all devices. Status
6 means that the step does not fit. It needs Linux and the compiler, jax[tpu] or jax[cuda13], but no
accelerator, no data, and a few minutes for a model of the paper's size.

JAX runs on the CPU, whatever JAX_PLATFORMS says, and does not look for a TPU. These variables are
set unless they already are: TPU_SKIP_MDS_QUERY, TPU_WORKER_HOSTNAMES, TPU_ACCELERATOR_TYPE,
TPU_MIN_LOG_LEVEL, and ALLOW_MULTIPLE_LIBTPU_LOAD, without which only one process at a time can use
the TPU's compiler.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import file_to_write
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.lab.compile.report import report
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
