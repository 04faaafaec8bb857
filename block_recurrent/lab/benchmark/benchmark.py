"""Measures rows of the table in turn: steps, compilation, memory, depth; then inference.

    block-recurrent benchmark
    block-recurrent benchmark --gin_file=sizes/paper.gin --gin.data.batch_size=8 \\
        --gin.model.vocab_size=32000 --rows XL:2048,Rec:fixed:skip,Feedback:fixed:skip

Rows take their steps in turn in one process, round by round. Every ratio is the median over rounds
of a row's time to that of the sliding-window model with one layer more. The program then measures
evaluation beside the forward pass alone, the cost of a scored token with a carried context and with
one that is read anew, generation of one row and of 64, and checkpoints.
"""

import dataclasses
import json
import logging
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ConfigError, ExperimentConfig, ModelConfig
from block_recurrent.lab.benchmark.inference import (
    measure_carrying,
    measure_evaluation,
    measure_generation,
)
from block_recurrent.lab.benchmark.timing import TimedStep, matmul_rate, ratio, time_in_turn, timed
from block_recurrent.lab.tables.layout import TextTable
from block_recurrent.lab.tables.rows import TableRow, reference, row_at, table_rows
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.seal import check_seal
from block_recurrent.system.devices import check_device
from block_recurrent.system.text import did_you_mean
from block_recurrent.training.build import make_train_state

DEFAULT_ROWS = "XL:2048,Slide:12L,Rec:fixed:skip,Rec:lstm:dual,Feedback:fixed:skip"
DEPTHS = (12, 48)
CHECKPOINT_ROUNDS = 25
# Columns of the table of steps: their figure, by what it is multiplied, and their format.
COLUMNS = {
    "step ms": ("milliseconds", 1, ",.1f"),
    "tokens/s": ("tokens_per_second", 1, ",.0f"),
    "ratio": ("ratio", 1, ".3f"),
    "lower s": ("lowering_seconds", 1, ".2f"),
    "compile s": ("compile_seconds", 1, ".2f"),
    "temp MB": ("temporary_bytes", 1e-6, ",.0f"),
}
_log = logging.getLogger(__name__)


def choose_rows(base: ExperimentConfig, names: str) -> list[TableRow]:
    """The reference row, and the rows of the paper's names in a list joined by commas.

    Raises:
      ConfigError: a name is not in the table, or the base is another model.
    """
    if not isinstance(base.model, ModelConfig):
        raise ConfigError(
            "the benchmark's rows are those of Table 1: model.architecture must be "
            f"'block_recurrent', not {base.model.architecture!r}"
        )
    known = {row.paper: row for row in table_rows(base)}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--rows: there is no row {name!r}{did_you_mean(name, known)}")
    first = reference(base)
    return [first] + [known[name] for name in wanted if name != first.paper]


def measure_steps(rows: Sequence[TableRow], rounds: int) -> list[dict[str, Any]]:
    """Compiles every row, times them in turn, and returns a dictionary a row."""
    steps = {}
    for row in rows:
        _log.info("compiling %s ...", row.name)
        steps[row.name] = TimedStep(row.config)
    seconds = time_in_turn({name: step.run for name, step in steps.items()}, rounds)
    results = []
    for row in rows:
        taken, data = statistics.median(seconds[row.name]), row.config.data
        results.append(
            {
                "row": row.name,
                "milliseconds": taken * 1e3,
                "tokens_per_second": data.batch_size * data.segment_length / taken,
                "ratio": ratio(seconds[row.name], seconds[rows[0].name]),
                **steps[row.name].costs,
            }
        )
    return results


def measure_depth(base: ExperimentConfig) -> dict[str, float]:
    """Compile seconds of plain models by depth, and the last relative to the first."""
    seconds = []
    for layers in DEPTHS:
        model = dataclasses.replace(base.model, num_layers=layers, recurrent_layers=())
        config = dataclasses.replace(base, model=model)
        samples = [TimedStep(config).costs["compile_seconds"] for _ in range(3)]
        seconds.append(statistics.median(samples))
    named = zip(DEPTHS, seconds, strict=True)
    figures = {f"compile_seconds_{layers}_layers": value for layers, value in named}
    return figures | {"compile_ratio": seconds[1] / seconds[0]}


def measure_checkpoints(config: ExperimentConfig) -> dict[str, float]:
    """Seconds to save and restore the initial state of a row, and the cost of checking it.

    The files are read from the system's cache; from a disk, the share of checking is smaller.
    """
    state = make_train_state(config)
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(folder)

        def save() -> None:
            store.save(state, {})
            store.wait()
            store.close()

        save_seconds = timed(save)
        checkpoint = store.directory / "0"
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        runs = {"restore": lambda: store.restore(state)[0], "check": lambda: check_seal(checkpoint)}
        seconds = time_in_turn(runs, CHECKPOINT_ROUNDS)
    return {
        "megabytes": size / 1e6,
        "save_seconds": save_seconds,
        "restore_seconds": statistics.median(seconds["restore"]),
        "check_to_restore_time": ratio(seconds["check"], seconds["restore"]),
    }


def benchmark(base: ExperimentConfig, rows: Sequence[TableRow], rounds: int) -> dict[str, Any]:
    """Measures everything and prints each result at once; returns all figures, for JSON.

    Args:
      base: the configuration of the recurrent rows.
      rows: whose steps are timed, from `choose_rows`.
      rounds: steps of each row.
    """

    def show(name: str, measured: dict[str, float]) -> dict[str, float]:
        listed = ", ".join(f"{figure} {value:,.3f}" for figure, value in measured.items())
        print(f"{name}: {listed}" if name else f"\n{listed}")
        return measured

    matmul_flops, steps = matmul_rate(dtype=base.model.dtype), measure_steps(rows, rounds)
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}")
    print(f"matrix product 2048 x 2048: {matmul_flops / 1e9:,.1f} GFLOP/s\n")
    cells = [
        [step["row"], *(f"{step[name] * unit:{form}}" for name, unit, form in COLUMNS.values())]
        for step in steps
    ]
    print(TextTable(("row", *COLUMNS), cells, ("row",)).text())
    figures: dict[str, Any] = {"matmul_flops": matmul_flops, "steps": steps}
    figures["depth"] = show("", measure_depth(row_at(base, "slide_12l").config))
    recurrent_row = row_at(base, "rec_fixed_skip")
    for row in (reference(base), recurrent_row):
        for name, title, measure in (
            ("evaluation", "evaluation", measure_evaluation),
            ("carrying", "context carried", measure_carrying),
            ("generation", "generation", measure_generation),
        ):
            measured = show(f"{title}, {row.name}", measure(row.config))
            figures.setdefault(name, {})[row.name] = measured
    checkpoints = measure_checkpoints(recurrent_row.config)
    figures["checkpoints"] = show(f"checkpoints, {recurrent_row.name}", checkpoints)
    return figures


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
