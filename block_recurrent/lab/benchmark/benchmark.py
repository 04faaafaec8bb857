"""Rows of the table, measured in turn: steps, compilation and depth; and what else takes time."""

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from block_recurrent import gin_files
from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.lab.benchmark.inference import (
    measure_carrying,
    measure_evaluation,
    measure_generation,
)
from block_recurrent.lab.benchmark.timing import TimedStep, matmul_rate, ratio, time_in_turn, timed
from block_recurrent.lab.tables.rows import TableRow, reference, row_at, table_rows
from block_recurrent.runs.checkpoint_folder import arrays_of
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.system.digests import digest
from block_recurrent.training.build import make_train_state

DEFAULT_ROWS = "XL:2048,Slide:12L,Rec:fixed:skip,Rec:lstm:dual,Feedback:fixed:skip"
DEPTHS = (12, 48)


def choose_rows(base: ExperimentConfig, names: str) -> list[TableRow]:
    """The reference row and those with the paper's names, comma-separated.

    Raises:
      ConfigError: a name that is not in the table, or a base that is another model.
    """
    if not isinstance(base.model, ModelConfig):
        raise gin_files.ConfigError(
            "the benchmark's rows are those of Table 1: model.architecture must be "
            f"'block_recurrent', not {base.model.architecture!r}"
        )
    known = {row.paper: row for row in table_rows(base)}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            hint = gin_files.did_you_mean(name, known)
            raise gin_files.ConfigError(f"--rows: there is no row {name!r}{hint}")
    first = reference(base)
    return [first] + [known[name] for name in wanted if name != first.paper]


def measure_steps(rows: Sequence[TableRow], rounds: int) -> list[dict[str, Any]]:
    """Compiles every row, times them in turn, and returns a dictionary a row."""
    steps = {}
    for row in rows:
        print(f"compiling {row.name} ...", file=sys.stderr, flush=True)
        steps[row.name] = TimedStep(row.config)
    seconds = time_in_turn({name: step.run for name, step in steps.items()}, rounds)
    results = []
    for row in rows:
        median = statistics.median(seconds[row.name])
        data = row.config.data
        results.append(
            {
                "row": row.name,
                "milliseconds": median * 1e3,
                "tokens_per_second": data.batch_size * data.segment_length / median,
                "ratio": ratio(seconds[row.name], seconds[rows[0].name]),
                **steps[row.name].build._asdict(),
            }
        )
    return results


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
    """Seconds to save and restore the initial state of a row, and what checking it costs.

    It is read while the system holds it in memory; from a disk, checking costs relatively less.
    """
    state = make_train_state(config)
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(folder)

        def save() -> None:
            store.save(state, {})
            store.close()

        save_seconds = timed(save)
        checkpoint = store.directory / "0"
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())

        arrays = [
            np.array(array).reshape(-1).view(np.uint8)
            for array in jax.tree.leaves(arrays_of(state))
        ]
        runs = {
            "restore": lambda: timed(lambda: store.restore(state)[0]),
            "check": lambda: timed(lambda: [digest(array) for array in arrays]),
        }
        seconds = time_in_turn(runs, rounds)
    return {
        "megabytes": size / 1e6,
        "save_seconds": save_seconds,
        "restore_seconds": statistics.median(seconds["restore"]),
        "check_to_restore_time": ratio(seconds["check"], seconds["restore"]),
    }


def print_steps(results: Sequence[dict[str, Any]], peak: float) -> None:
    """The table of `measure_steps`; `peak` is the rate of a matrix product in FLOP/s."""
    print(f"matrix product 2048 x 2048: {peak / 1e9:,.1f} GFLOP/s\n")
    columns = ("step ms", "tokens/s", "ratio", "lower s", "compile s", "temp MB")
    print(f"{'row':22}" + "".join(f"{column:>11}" for column in columns))
    for result in results:
        print(
            f"{result['row']:22}{result['milliseconds']:11,.1f}"
            f"{result['tokens_per_second']:11,.0f}{result['ratio']:11.3f}"
            f"{result['lowering_seconds']:11.2f}{result['compile_seconds']:11.2f}"
            f"{result['temporary_bytes'] / 1e6:11,.0f}"
        )


def describe(figures: dict[str, float]) -> str:
    """Names and values, for people."""
    return ", ".join(f"{name} {value:,.3f}" for name, value in figures.items())


def benchmark(base: ExperimentConfig, rows: Sequence[TableRow], rounds: int) -> dict[str, Any]:
    """Measures everything and prints it as it comes; returns all figures, for JSON.

    Args:
      base: of the recurrent rows.
      rows: whose steps are timed, from `choose_rows`.
      rounds: steps of each row.
    """
    peak = matmul_rate(dtype=base.model.dtype)
    steps = measure_steps(rows, rounds)
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}")
    print_steps(steps, peak)
    depth = measure_depth(row_at(base, "slide_12l").config)
    print(f"\n{describe(depth)}")
    recurrent_row = row_at(base, "rec_fixed_skip")
    evaluation, carrying, generation = {}, {}, {}
    for row in (reference(base), recurrent_row):
        evaluation[row.name] = measure_evaluation(row.config)
        print(f"evaluation, {row.name}: {describe(evaluation[row.name])}")
        carrying[row.name] = measure_carrying(row.config)
        print(f"context carried, {row.name}: {describe(carrying[row.name])}")
        generation[row.name] = measure_generation(row.config)
        print(f"generation, {row.name}: {describe(generation[row.name])}")
    checkpoints = measure_checkpoints(recurrent_row.config)
    print(f"checkpoints, {recurrent_row.name}: {describe(checkpoints)}")
    return {
        "matmul_flops": peak,
        "steps": steps,
        "depth": depth,
        "evaluation": evaluation,
        "carrying": carrying,
        "generation": generation,
        "checkpoints": checkpoints,
    }
