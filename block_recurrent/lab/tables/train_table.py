"""Trains rows of the paper's Table 1 at a small size and prints the table.

    block-recurrent table            seven rows, 10 minutes on two cores
    block-recurrent table --long     all rows, longer, some of them with three seeds

A process of its own trains each row, on the same tokens; on a CPU, as many at a time as there are
cores. The tokens are pieces, of a vocabulary that is learned from the training text. The work
directory keeps the results: the same command continues after a stop. `--row=NAME` trains one row
and nothing else, for instance on another machine.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.data import ByteTokenizer, Corpus, byte_count, make_tokenizer, tokenize
from block_recurrent.data.loading import Corpora, load_documents
from block_recurrent.lab.benchmark.timing import TimedStep, ratio, time_in_turn
from block_recurrent.lab.corpora.train_vocab import train_vocabulary
from block_recurrent.lab.tables import children
from block_recurrent.lab.tables.children import run_side_by_side
from block_recurrent.lab.tables.layout import publish
from block_recurrent.lab.tables.paper import LENGTH, SIZE
from block_recurrent.lab.tables.rows import TableRow, reference, row_called, small_table_rows
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.lab.tables.small_table import lzma_bits_per_byte, make_page
from block_recurrent.runs import train, workdir
from block_recurrent.runs.identity import check_claim
from block_recurrent.runs.reading import read_run, read_runs
from block_recurrent.system.devices import check_device
from block_recurrent.system.digests import digest
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressBoard, ProgressLine, duration
from block_recurrent.system.signals import StopRequest, stop_on_signal

# Characters read of each document.
TRAIN_CHARACTERS = 131_072
VALIDATION_CHARACTERS = 16_384
# Of the training text, for the vocabulary, spread evenly over the documents.
VOCABULARY_BYTES = 2_000_000
TIMING_ROUNDS = 15
STEP_TIME = "step_time.json"  # in the work directory of a row that is done


def shorten(corpus: Corpus, characters: int) -> Corpus:
    """The beginning of every document, so that no single one outweighs the others."""
    documents = tuple(d._replace(text=d.text[:characters]) for d in corpus.documents)
    return dataclasses.replace(corpus, documents=documents)


def load_texts(base: ExperimentConfig) -> tuple[Corpus, Corpus]:
    """The documents that all rows train on, and those that they are scored on."""
    training = shorten(load_documents(base.data, "train"), TRAIN_CHARACTERS)
    return training, shorten(load_documents(base.data, "validation"), VALIDATION_CHARACTERS)


def with_pieces(base: ExperimentConfig, training: Corpus, folder: Path) -> ExperimentConfig:
    """The configuration with pieces in place of bytes, where the model's vocabulary is larger.

    A vocabulary of `model.vocab_size` pieces is learned from the training text, if it is not in the
    folder yet. A configuration with another tokenizer than bytes stays as it is.

    Raises:
      DataError: there is not enough text for so many pieces.
      MissingPackage: sentencepiece is not installed.
    """
    number = base.model.vocab_size
    if base.data.tokenizer != "bytes" or number == ByteTokenizer.vocab_size:
        return base
    path = folder / f"pieces_{number}.model"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        share = min(1.0, VOCABULARY_BYTES / sum(map(byte_count, training.documents)))
        write_whole(path, train_vocabulary(training.documents, number, share=share))
    data = dataclasses.replace(
        base.data,
        tokenizer="sentencepiece",
        vocab_path=str(path),
        vocab_sha256=digest(path.read_bytes()),
    )
    return dataclasses.replace(base, data=data)


def row_folder(folder: Path, row: TableRow) -> Path:
    """The work directory of a row of the table in `folder`."""
    return folder / row.name.replace(":", "-") / f"seed_{row.seed}"


def read_step_time(folder: Path, row: TableRow) -> float | None:
    """The relative step time of a row that is trained and timed, or None.

    Raises:
      ConfigError: the row's folder holds a run with another configuration.
    """
    own = row_folder(folder, row)
    check_claim(own, row.config)
    path = own / STEP_TIME
    return json.loads(path.read_text())["step_time"] if path.exists() else None


def train_row(base: ExperimentConfig, name: str, folder: Path, stop: StopRequest) -> None:
    """Trains, evaluates and times a row, and writes its step time into its work directory.

    Args:
      base: the configuration of the recurrent rows.
      name: of the row.
      folder: of the table.
      stop: stops the training when it is requested.

    Raises:
      ConfigError: there is no row of this name.
    """
    row, texts = row_called(base, name), load_texts(base)
    row = row._replace(config=with_pieces(row.config, texts[0], folder))
    # A row's step is compiled for training, for timing, and again after a stop.
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    tokenizer, ends = make_tokenizer(row.config.data), base.data.end_of_document
    corpora = Corpora(*(tokenize(text, tokenizer, end_of_document=ends) for text in texts))
    own, line = row_folder(folder, row), ProgressLine()
    train(row.config, own, corpora, line=line, stop=stop)
    line.show("timing its step in turn with the reference's")
    steps = {"row": TimedStep(row.config).run, "reference": TimedStep(reference(base).config).run}
    seconds = time_in_turn(steps, TIMING_ROUNDS)
    relative = {"step_time": ratio(seconds["row"], seconds["reference"])}
    write_whole(own / STEP_TIME, json.dumps(relative) + "\n")


def train_table(
    base: ExperimentConfig,
    folder: Path,
    command: Sequence[str],
    stop: StopRequest,
    *,
    long: bool,
    seeds: int,
    at_once: int,
) -> int:
    """Trains the rows that have no result yet, prints the table and writes its files to `folder`.

    Args:
      base: the configuration of the recurrent rows.
      folder: of all results.
      command: with `--row=NAME` and a seed it calls `train_row`.
      stop: stops the training when it is requested.
      long: whether all rows are trained.
      seeds: of each row.
      at_once: how many rows are trained at a time.

    Returns:
      The exit status of a row that could not be trained, or 0. The others are trained all the same.

    Raises:
      ConfigError: the folder cannot be used, or a row's holds a run with another configuration.
      DataError: there is not enough text for so many pieces.
      WorkdirInUse: another process is training there.
      Stopped: a stop was requested; every row has saved what it had.
    """
    with workdir.locked(folder):
        training, validation = load_texts(base)
        base = with_pieces(base, training, folder)
        rows = small_table_rows(base, long=long, seeds=seeds)
        missing = {title_of(row, base): row for row in rows if read_step_time(folder, row) is None}
        description = describe(base, training, validation)
        print(description + "\n", flush=True)
        stop.nothing_to_save = False
        failures = train_rows(folder, missing, command, at_once, stop)
        for title, status in failures.items():
            message = f"{title} ended with status {status}; the same command tries it again"
            print(message, file=sys.stderr)
            return status if status > 0 else 128 - status
        stop.nothing_to_save = True
        groups = group_runs(read_runs(row_folder(folder, row) for row in rows))
        times = {row: time for row in rows if (time := read_step_time(folder, row)) is not None}
        compressed = lzma_bits_per_byte(validation.documents)
        print()
        publish(make_page(groups, times, compressed, description), folder)
    return 0


def title_of(row: TableRow, base: ExperimentConfig) -> str:
    """What the progress display calls a row: its name, and its seed if that is another one."""
    return row.name if row.seed == base.training.seed else f"{row.name}, seed {row.seed}"


def train_rows(
    folder: Path,
    rows: Mapping[str, TableRow],
    command: Sequence[str],
    at_once: int,
    stop: StopRequest,
) -> dict[str, int]:
    """Trains rows, by their titles, and shows their progress and the result of each.

    Returns:
      The exit statuses of the rows that could not be trained, by title.

    Raises:
      Stopped: a stop was requested.
    """
    commands = {
        title: [
            *command,
            f"--row={row.name}",
            f"--gin.training.seed={row.config.training.seed}",
            f"--gin.data.seed={row.config.data.seed}",
        ]
        for title, row in rows.items()
    }
    failures: dict[str, int] = {}
    board, begin = ProgressBoard(list(rows)), time.monotonic()

    def hear(title: str, text: str) -> None:
        if text and ("error:" in text or stop.signal is not None):
            board.say(f"{title} | {text}")
        elif text:
            board.show(title, text)

    for number, (title, status) in enumerate(run_side_by_side(commands, at_once, stop, hear), 1):
        stop.check()
        step_time = read_step_time(folder, rows[title])
        if status or step_time is None:
            failures[title] = status
            text = f"ended with status {status}"
        else:
            scored = read_run(row_folder(folder, rows[title])).points[-1].evaluation
            text = f"{scored.bits_per_byte:.3f} bits/byte, step time {step_time:.2f}"
        done, to_come = (-(-count // at_once) for count in (number, len(rows) - number))  # rounds
        left = duration((time.monotonic() - begin) / done * to_come) if to_come else ""
        board.end(title, text, left)
    stop.check()
    return failures


def describe(base: ExperimentConfig, training: Corpus, validation: Corpus) -> str:
    """Says what was trained, on what, and for how long."""
    model, data, steps = base.model, base.data, base.training.num_steps
    name, step = data.corpus_name, data.batch_size * data.segment_length
    read, scored = (sum(map(byte_count, part.documents)) for part in (training, validation))
    if data.source == "stdlib":
        python = ".".join(map(str, sys.version_info[:3]))
        name = f"the source code of Python {python}'s standard library"
    tokens = "bytes" if data.tokenizer == "bytes" else f"{model.vocab_size:,} pieces of text"
    return (
        f"These are small models: {model.num_layers} layers of size {model.model_size}, "
        f"window {model.window}, {model.num_states} states; the paper's have {SIZE}. Tokens are "
        f"{tokens}. Each model was "
        f"trained for {steps:,} steps of {step:,} tokens (the paper: {LENGTH}) on {name}: the "
        f"first {TRAIN_CHARACTERS:,} characters of {len(training.documents)} documents, {read:,} "
        f"bytes in all. Validation: the first {VALIDATION_CHARACTERS:,} characters of "
        f"{len(validation.documents)} others, {scored:,} bytes; lzma compresses each of them on "
        f"its own. All rows read the same {data.batch_size} documents side by side, "
        f"{data.segment_length} tokens of each a step, in the same order; the segments of XL and "
        "of the older Transformers are one window long, several of them a step, with no gradient "
        "from one to the next. Parameters are without the embedding. Step time is relative to "
        f"{reference(base).name}, measured in turn with it, on one core each. The paper's columns "
        "are bits per token; a blank is a figure that could not be verified."
    )


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    begin = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="train all rows, and longer")
    parser.add_argument("--workdir", type=Path, help="results; runs/table unless given")
    parser.add_argument("--row", metavar="NAME", help="train this row only")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="train every row so many times (1)"
    )
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
        status = train_table(
            base,
            folder,
            command,
            stop,
            long=arguments.long,
            seeds=arguments.seeds,
            at_once=at_once,
        )
    if not status:
        print(f"{duration(time.monotonic() - begin)} in all")
    return status
