"""Trains every row of the paper's Table 1 at a small size and prints the table.

    block-recurrent table            8 to 12 minutes on two cores
    block-recurrent table --long     the same rows, seven times longer

A process of its own trains each row, on the same tokens; on a CPU, as many at a time as there are
cores. The work directory keeps the results: the same command continues after a stop. `--row=NAME`
trains one row and nothing else, for instance on another machine.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.data import Corpus, byte_count, make_tokenizer, tokenize
from block_recurrent.data.loading import Corpora, load_documents
from block_recurrent.lab.benchmark.timing import TimedStep, ratio, time_in_turn
from block_recurrent.lab.tables import children
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
from block_recurrent.system.devices import check_device
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import StopRequest, stop_on_signal
from block_recurrent.system.text import did_you_mean

# Characters read of each document.
TRAIN_CHARACTERS = 131_072
VALIDATION_CHARACTERS = 16_384
TIMING_ROUNDS = 15


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
    steps = {"row": TimedStep(row.config).run, "reference": TimedStep(reference(base).config).run}
    seconds = time_in_turn(steps, TIMING_ROUNDS)
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
    base: ExperimentConfig, folder: Path, command: Sequence[str], at_once: int, stop: StopRequest
) -> int:
    """Trains the rows that have no result yet, prints the table and writes its files to `folder`.

    Args:
      base: the configuration of the recurrent rows.
      folder: of all results.
      command: with `--row=NAME` it calls `train_row`.
      at_once: how many rows are trained at a time.
      stop: stops the training when it is requested.

    Returns:
      The exit status of a row that could not be trained, or 0. The others are trained all the same.

    Raises:
      ConfigError: the folder cannot be used, or a row's holds a run with another configuration.
      WorkdirInUse: another process is training there.
      Stopped: a stop was requested; every row has saved what it had.
    """
    with workdir.locked(folder):
        rows = small_table_rows(base)
        titles = {row.name: f"[{n}/{len(rows)}] {row.name}" for n, row in enumerate(rows, 1)}
        missing = {titles[row.name]: row for row in rows if not read_result(folder, row)}
        training, validation = load_texts(base)
        description = describe(base, training, validation)
        print(description + "\n", flush=True)
        stop.nothing_to_save = False
        commands = {title: [*command, f"--row={row.name}"] for title, row in missing.items()}
        for name, status in train_rows(folder, missing, commands, at_once, stop).items():
            message = f"{name} ended with status {status}; the same command tries it again"
            print(message, file=sys.stderr)
            return status if status > 0 else 128 - status
        stop.nothing_to_save = True
        results = [result for row in rows if (result := read_result(folder, row))]
        order_2 = Order2Model(training.documents)
        untrained = {
            "lzma, highest preset": lzma_bits_per_byte(validation.documents),
            "order-2 byte model": order_2.bits_per_byte(validation.documents),
        }
        print()
        publish(make_page(results, untrained, description), folder)
    return 0


def train_rows(
    folder: Path,
    rows: Mapping[str, TableRow],
    commands: Mapping[str, Sequence[str]],
    at_once: int,
    stop: StopRequest,
) -> dict[str, int]:
    """Trains rows, by their titles, and prints the result of each.

    Returns:
      The exit statuses of the rows that could not be trained, by name.

    Raises:
      Stopped: a stop was requested.
    """
    failures: dict[str, int] = {}
    line, begin = ProgressLine(), time.monotonic()

    def hear(title: str, text: str) -> None:
        leave = line.end if "error:" in text else partial(line.show, always=True)
        leave(f"{title} | {text}")

    try:
        ended = run_side_by_side(commands, at_once, stop, hear)
        for number, (title, status) in enumerate(ended, 1):
            stop.check()
            result = read_result(folder, rows[title])
            if status or result is None:
                failures[rows[title].name] = status
                continue
            left = duration((time.monotonic() - begin) / number * (len(rows) - number))
            bits, step_time = result["bits_per_byte"], result["step_time"]
            line.clear()
            figures = f"{bits:.3f} bits/byte, step time {step_time:.2f}"
            print(f"{title}: {figures}; about {left} left", flush=True)
        stop.check()
    finally:
        line.end()
    return failures


def describe(base: ExperimentConfig, training: Corpus, validation: Corpus) -> str:
    """Says what was trained, on what, and for how long."""
    model, data, steps = base.model, base.data, base.training.num_steps
    name, step = data.corpus_name, data.batch_size * data.segment_length
    read, scored = (sum(map(byte_count, part.documents)) for part in (training, validation))
    if data.source == "stdlib":
        python = ".".join(map(str, sys.version_info[:3]))
        name = f"the source code of Python {python}'s standard library"
    return (
        f"These are small models: {model.num_layers} layers of size {model.model_size}, "
        f"window {model.window}, {model.num_states} states; the paper's have {SIZE}. Each was "
        f"trained once, with seed {base.training.seed}, for {steps:,} steps of {step:,} bytes (the "
        f"paper: {LENGTH}) of {name}: the first {TRAIN_CHARACTERS:,} characters of "
        f"{len(training.documents)} documents, {read:,} bytes in all. Validation: "
        f"the first {VALIDATION_CHARACTERS:,} characters of {len(validation.documents)} others, "
        f"{scored:,} bytes. All rows read the same {data.batch_size} documents "
        f"side by side, {data.segment_length} bytes of each a step, in the same order; the "
        "segments of the Transformers and of XL are one window long, several of them a step, with "
        "no gradient from one to the next. Step time is relative to "
        f"{reference(base).name}, measured in turn with it, on one core each. The order-2 model "
        "was counted on all training bytes; lzma compresses each document on its own. The paper's "
        "columns are bits per token; a blank is a figure that could not be verified."
    )


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
            children.stop_with_parent()
            children.use_one_core()
            check_device()
            train_row(base, arguments.row, folder, stop)
            return 0
        command = [sys.executable, "-m", "block_recurrent", "table", *words]
        at_once = arguments.at_once
        if at_once is None:
            at_once = children.count_cores() if children.default_backend() == "cpu" else 1
        status = train_table(base, folder, command, at_once, stop)
    if not status:
        print(f"{duration(time.monotonic() - begin)} in all")
    return status
