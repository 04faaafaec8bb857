"""The benchmark: steps, compilation and depth of rows of the table; inference and checkpoints."""

import dataclasses
import logging
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

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
from block_recurrent.system.text import did_you_mean
from block_recurrent.training.build import make_train_state

DEFAULT_ROWS = "XL:2048,Slide:12L,Rec:fixed:skip,Rec:lstm:dual,Feedback:fixed:skip"
DEPTHS = (12, 48)
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
            hint = did_you_mean(name, known)
            raise ConfigError(f"--rows: there is no row {name!r}{hint}")
    first = reference(base)
    return [first] + [known[name] for name in wanted if name != first.paper]


def measure_steps(rows: Sequence[TableRow], rounds: int) -> list[dict[str, Any]]:
    """Compiles every row, times them in turn, and returns a dictionary a row."""
    steps = {}
    for row in rows:
        _log.info("compiling %s ...", row.name)
        steps[row.name] = TimedStep(row.config)
    seconds = time_in_turn({name: step.run for name, step in steps.items()}, rounds)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    tokens = {row.name: row.config.data.batch_size * row.config.data.segment_length for row in rows}
    return [
        {
            "row": name,
            "milliseconds": medians[name] * 1e3,
            "tokens_per_second": tokens[name] / medians[name],
            "ratio": ratio(taken, seconds[rows[0].name]),
            **steps[name].build._asdict(),
        }
        for name, taken in seconds.items()
    ]


def measure_depth(base: ExperimentConfig) -> dict[str, float]:
    """Compile seconds of plain models by depth, and the last relative to the first."""
    seconds = {}
    for layers in DEPTHS:
        config = dataclasses.replace(
            base, model=dataclasses.replace(base.model, num_layers=layers, recurrent_layers=())
        )
        samples = [TimedStep(config).build.compile_seconds for _ in range(3)]
        seconds[layers] = statistics.median(samples)
    named = {f"compile_seconds_{layers}_layers": value for layers, value in seconds.items()}
    return named | {"compile_ratio": seconds[DEPTHS[1]] / seconds[DEPTHS[0]]}


def measure_checkpoints(config: ExperimentConfig, rounds: int = 25) -> dict[str, float]:
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

        runs = {
            "restore": lambda: store.restore(state)[0],
            "check": lambda: check_seal(checkpoint),
        }
        seconds = time_in_turn(runs, rounds)
    return {
        "megabytes": size / 1e6,
        "save_seconds": save_seconds,
        "restore_seconds": statistics.median(seconds["restore"]),
        "check_to_restore_time": ratio(seconds["check"], seconds["restore"]),
    }


def describe_steps(results: Sequence[dict[str, Any]], matmul_flops: float) -> str:
    """The table of `measure_steps`, and the rate of a matrix product in FLOP/s."""
    columns = ("row", "step ms", "tokens/s", "ratio", "lower s", "compile s", "temp MB")
    rows = [
        [
            result["row"],
            f"{result['milliseconds']:,.1f}",
            f"{result['tokens_per_second']:,.0f}",
            f"{result['ratio']:.3f}",
            f"{result['lowering_seconds']:.2f}",
            f"{result['compile_seconds']:.2f}",
            f"{result['temporary_bytes'] / 1e6:,.0f}",
        ]
        for result in results
    ]
    table = TextTable(columns, rows, ("row",))
    return f"matrix product 2048 x 2048: {matmul_flops / 1e9:,.1f} GFLOP/s\n\n{table.text()}"


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

    figures: dict[str, Any] = {"matmul_flops": matmul_rate(dtype=base.model.dtype)}
    figures["steps"] = measure_steps(rows, rounds)
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}")
    print(describe_steps(figures["steps"], figures["matmul_flops"]))
    figures["depth"] = show("", measure_depth(row_at(base, "slide_12l").config))
    inference = {
        "evaluation": ("evaluation", measure_evaluation),
        "carrying": ("context carried", measure_carrying),
        "generation": ("generation", measure_generation),
    }
    recurrent_row = row_at(base, "rec_fixed_skip")
    for row in (reference(base), recurrent_row):
        for name, (title, measure) in inference.items():
            measured = show(f"{title}, {row.name}", measure(row.config))
            figures.setdefault(name, {})[row.name] = measured
    checkpoints = measure_checkpoints(recurrent_row.config)
    figures["checkpoints"] = show(f"checkpoints, {recurrent_row.name}", checkpoints)
    return figures
