"""Training the rows of the paper's Table 1 at a small size, several side by side."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.data import Corpus, byte_count
from block_recurrent.lab.tables.layout import show
from block_recurrent.lab.tables.paper import LENGTH, SIZE
from block_recurrent.lab.tables.rows import TableRow, reference, small_table_rows
from block_recurrent.lab.tables.small_table import SmallTable
from block_recurrent.lab.tables.train_row import (
    TRAIN_CHARACTERS,
    VALIDATION_CHARACTERS,
    load_texts,
    read_result,
)
from block_recurrent.lab.tables.untrained import lzma_bits_per_byte, order_2_bits_per_byte
from block_recurrent.runs import workdir
from block_recurrent.system.children import run_side_by_side
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import StopRequest
from block_recurrent.system.text import did_you_mean


class RowFailed(Exception):
    """A row ended before its result was there; it has said why.

    Attributes:
      exit_status: of its process.
    """

    def __init__(self, name: str, exit_status: int):
        super().__init__(f"{name} ended with status {exit_status}")
        self.exit_status = exit_status if exit_status > 0 else 128 - exit_status


def find_row(base: ExperimentConfig, name: str) -> TableRow:
    """The row of this name.

    Raises:
      ConfigError: there is none.
    """
    rows = {row.name: row for row in small_table_rows(base)}
    if name not in rows:
        raise ConfigError(f"--row: there is no row {name!r}{did_you_mean(name, rows)}")
    return rows[name]


def train_table(
    base: ExperimentConfig,
    folder: Path,
    command: Sequence[str],
    at_once: int,
    stop: StopRequest,
) -> None:
    """Trains the rows that have no result yet, prints the table and writes its files to `folder`.

    Args:
      base: the configuration of the recurrent rows.
      folder: of all results.
      command: with `--row=NAME` it calls `train_row`.
      at_once: how many rows are trained at a time.
      stop: is asked to stop.

    Raises:
      ConfigError: the folder cannot be used, or a row's holds a run with another configuration.
      WorkdirInUse: another process is training there.
      RowFailed: a row could not be trained.
      Stopped: a stop was requested; every row has saved what it had.
    """
    with workdir.locked(folder):
        rows = small_table_rows(base)
        missing = [row for row in rows if read_result(folder, row) is None]
        texts = load_texts(base)
        description = describe(base, *texts)
        print(description + "\n", flush=True)
        stop.nothing_to_save = False
        train_rows(folder, rows, missing, command, at_once, stop)
        stop.nothing_to_save = True
        results = [read_result(folder, row) for row in rows]
        table = SmallTable(
            [result for result in results if result is not None],
            untrained={
                "lzma, highest preset": lzma_bits_per_byte(texts[1].documents),
                "order-2 byte model": order_2_bits_per_byte(*(t.documents for t in texts)),
            },
            description=description,
        )
        written = table.write(folder)
        show("\n" + table.text(), written)


def train_rows(
    folder: Path,
    rows: Sequence[TableRow],
    missing: Sequence[TableRow],
    command: Sequence[str],
    at_once: int,
    stop: StopRequest,
) -> None:
    """Trains those of the rows that are missing, and says each one's result as it is done.

    Raises:
      RowFailed: a row could not be trained; the others were.
      Stopped: a stop was requested.
    """
    titles = {row.name: f"[{number}/{len(rows)}] {row.name}" for number, row in enumerate(rows, 1)}
    by_name = {row.name: row for row in missing}
    line, begin = ProgressLine(), time.monotonic()

    def hear(name: str, text: str) -> None:
        leave = line.end if "error:" in text else partial(line.show, always=True)
        leave(f"{titles[name]} | {text}")

    commands = {name: [*command, f"--row={name}"] for name in by_name}
    ended, failures = run_side_by_side(commands, at_once, stop, hear), []
    try:
        for done, (name, status) in enumerate(ended, 1):
            stop.check()
            result = read_result(folder, by_name[name])
            if status or result is None:
                failures.append(RowFailed(name, status))
                continue
            left = duration((time.monotonic() - begin) / done * (len(missing) - done))
            line.clear()
            print(f"{titles[name]}: {_figures(result)}; about {left} left", flush=True)
        stop.check()
    finally:
        line.end()
    if failures:
        raise failures[0]


def _figures(result: dict[str, Any]) -> str:
    return f"{result['bits_per_byte']:.3f} bits/byte, step time {result['step_time']:.2f}"


def describe(base: ExperimentConfig, training: Corpus, validation: Corpus) -> str:
    """Sentences that say what was trained, on what, and for how long."""
    model, data, steps = base.model, base.data, base.training.num_steps
    step = data.batch_size * data.segment_length
    return (
        f"These are small models: {model.num_layers} layers of size {model.model_size}, "
        f"window {model.window}, {model.num_states} states; the paper's have {SIZE}. Each was "
        f"trained once, with seed {base.training.seed}, for {steps:,} steps of {step:,} bytes (the "
        f"paper: {LENGTH}) of {_text(base)}: the first {TRAIN_CHARACTERS:,} characters of "
        f"{len(training.documents)} documents, {text_bytes(training):,} bytes in all. Validation: "
        f"the first {VALIDATION_CHARACTERS:,} characters of {len(validation.documents)} others, "
        f"{text_bytes(validation):,} bytes. All rows read the same {data.batch_size} documents "
        f"side by side, {data.segment_length} bytes of each a step, in the same order; the "
        "segments of the Transformers and of XL are one window long, several of them a step, with "
        "no gradient from one to the next. Step time is relative to "
        f"{reference(base).name}, measured in turn with it, on one core each. The order-2 model "
        "was counted on all training bytes; lzma compresses each document on its own. The paper's "
        "columns are bits per token; a blank is a figure that could not be verified."
    )


def _text(base: ExperimentConfig) -> str:
    if base.data.source != "stdlib":
        return base.data.corpus_name
    python = ".".join(map(str, sys.version_info[:3]))
    return f"the source code of Python {python}'s standard library"


def text_bytes(corpus: Corpus) -> int:
    """The number of UTF-8 bytes of all documents."""
    return sum(map(byte_count, corpus.documents))
