"""Training the rows of the small table: one row in this process, or all rows side by side."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.data import Corpus, byte_count, make_tokenizer, tokenize
from block_recurrent.data.loading import Corpora, load_documents
from block_recurrent.lab.benchmark.timing import TimedStep, ratio, time_in_turn
from block_recurrent.lab.tables.children import run_side_by_side
from block_recurrent.lab.tables.layout import publish
from block_recurrent.lab.tables.naming import segment_of, window_of
from block_recurrent.lab.tables.paper import LENGTH, SIZE, row_figures
from block_recurrent.lab.tables.rows import TableRow, reference, small_table_rows
from block_recurrent.lab.tables.small_table import make_page
from block_recurrent.lab.tables.untrained import Order2Model, lzma_bits_per_byte
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import train, workdir
from block_recurrent.runs.identity import check_claim
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import StopRequest
from block_recurrent.system.text import did_you_mean

# Characters read of each document.
TRAIN_CHARACTERS = 131_072
VALIDATION_CHARACTERS = 16_384
TIMING_ROUNDS = 15


class RowFailed(Exception):
    """A row ended without a result, after an error message of its own.

    Attributes:
      exit_status: of its process.
    """

    def __init__(self, name: str, exit_status: int):
        super().__init__(f"{name} ended with status {exit_status}")
        self.exit_status = exit_status if exit_status > 0 else 128 - exit_status


def shorten(corpus: Corpus, characters: int) -> Corpus:
    """The beginning of every document, so that no single one outweighs the others."""
    documents = tuple(d._replace(text=d.text[:characters]) for d in corpus.documents)
    return dataclasses.replace(corpus, documents=documents)


def load_texts(base: ExperimentConfig) -> tuple[Corpus, Corpus]:
    """The documents that all rows train on, and those that they are scored on."""
    training = shorten(load_documents(base.data, "train"), TRAIN_CHARACTERS)
    return training, shorten(load_documents(base.data, "validation"), VALIDATION_CHARACTERS)


def row_folder(folder: Path, row: TableRow) -> Path:
    """The work directory of a row of the table in `folder`."""
    return folder / row.name.replace(":", "-")


def read_result(folder: Path, row: TableRow) -> dict[str, Any] | None:
    """What an earlier call of `train_row` found, or None.

    Raises:
      ConfigError: the row's folder holds a run with another configuration.
    """
    own = row_folder(folder, row)
    check_claim(own, row.config)
    path = own / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def train_row(base: ExperimentConfig, name: str, folder: Path, stop: StopRequest) -> None:
    """Trains, evaluates and times a row, and writes the result into its work directory.

    Args:
      base: the configuration of the recurrent rows.
      name: of the row.
      folder: of the table.
      stop: stops the training when it is requested.

    Raises:
      ConfigError: there is no row of this name.
    """
    rows = {row.name: row for row in small_table_rows(base)}
    if name not in rows:
        raise ConfigError(f"--row: there is no row {name!r}{did_you_mean(name, rows)}")
    row = rows[name]
    # A row's step is compiled for training, for timing, and again after a stop.
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    tokenizer = make_tokenizer(base.data)
    corpora = Corpora(*(tokenize(corpus, tokenizer) for corpus in load_texts(base)))
    own, line = row_folder(folder, row), ProgressLine()
    model, evaluation = train(row.config, own, corpora, line=line, stop=stop)
    line.show("timing its step in turn with the reference's")
    steps = {"row": TimedStep(row.config), "reference": TimedStep(reference(base).config)}
    seconds = time_in_turn({name: step.run for name, step in steps.items()}, TIMING_ROUNDS)
    result = {
        "row": row.name,
        "paper_row": row.paper,
        "parameters": count_parameters(model),
        "parameters_without_embedding": count_parameters(model, embedding=False),
        "segment": segment_of(row.config),
        "window": window_of(row.config),
        "steps": row.config.training.num_steps,
        "learning_rate": row.config.optimizer.learning_rate,
        "step_time": ratio(seconds["row"], seconds["reference"]),
        **evaluation.metrics(),
        "paper": row_figures(row.paper),
    }
    write_whole(own / "result.json", json.dumps(result, indent=2) + "\n")


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
      stop: stops the training when it is requested.

    Raises:
      ConfigError: the folder cannot be used, or a row's holds a run with another configuration.
      WorkdirInUse: another process is training there.
      RowFailed: a row could not be trained.
      Stopped: a stop was requested; every row has saved what it had.
    """
    with workdir.locked(folder):
        rows = small_table_rows(base)
        done = {row.name for row in rows if read_result(folder, row)}
        texts = load_texts(base)
        description = describe(base, *texts)
        print(description + "\n", flush=True)
        stop.nothing_to_save = False
        train_rows(folder, rows, done, command, at_once, stop)
        stop.nothing_to_save = True
        results = [result for row in rows if (result := read_result(folder, row))]
        untrained = {
            "lzma, highest preset": lzma_bits_per_byte(texts[1].documents),
            "order-2 byte model": Order2Model(texts[0].documents).bits_per_byte(texts[1].documents),
        }
        print()
        publish(make_page(results, untrained, description), folder)


def train_rows(
    folder: Path,
    rows: Sequence[TableRow],
    done: set[str],
    command: Sequence[str],
    at_once: int,
    stop: StopRequest,
) -> None:
    """Trains the rows that are not done, and prints the result of each.

    Raises:
      RowFailed: a row could not be trained; the others were.
      Stopped: a stop was requested.
    """
    titles = {row.name: f"[{number}/{len(rows)}] {row.name}" for number, row in enumerate(rows, 1)}
    missing = {row.name: row for row in rows if row.name not in done}
    line, begin = ProgressLine(), time.monotonic()

    def hear(name: str, text: str) -> None:
        leave = line.end if "error:" in text else partial(line.show, always=True)
        leave(f"{titles[name]} | {text}")

    commands = {name: [*command, f"--row={name}"] for name in missing}
    ended, failures = run_side_by_side(commands, at_once, stop, hear), []
    try:
        for number, (name, status) in enumerate(ended, 1):
            stop.check()
            result = read_result(folder, missing[name])
            if status or result is None:
                failures.append(RowFailed(name, status))
                continue
            left = duration((time.monotonic() - begin) / number * (len(missing) - number))
            line.clear()
            figures = (
                f"{result['bits_per_byte']:.3f} bits/byte, step time {result['step_time']:.2f}"
            )
            print(f"{titles[name]}: {figures}; about {left} left", flush=True)
        stop.check()
    finally:
        line.end()
    if failures:
        raise failures[0]


def describe(base: ExperimentConfig, training: Corpus, validation: Corpus) -> str:
    """Says what was trained, on what, and for how long."""
    model, data, steps = base.model, base.data, base.training.num_steps
    name, step = data.corpus_name, data.batch_size * data.segment_length
    if data.source == "stdlib":
        python = ".".join(map(str, sys.version_info[:3]))
        name = f"the source code of Python {python}'s standard library"
    return (
        f"These are small models: {model.num_layers} layers of size {model.model_size}, "
        f"window {model.window}, {model.num_states} states; the paper's have {SIZE}. Each was "
        f"trained once, with seed {base.training.seed}, for {steps:,} steps of {step:,} bytes (the "
        f"paper: {LENGTH}) of {name}: the first {TRAIN_CHARACTERS:,} characters of "
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


def text_bytes(corpus: Corpus) -> int:
    """The number of UTF-8 bytes of all documents."""
    return sum(map(byte_count, corpus.documents))
