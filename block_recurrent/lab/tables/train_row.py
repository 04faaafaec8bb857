"""Training one row of the small table: its model, its figures, and its step time."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Corpus, make_tokenizer, tokenize
from block_recurrent.data.loading import Corpora, load_documents
from block_recurrent.lab.benchmark.timing import TimedStep, ratio, time_in_turn
from block_recurrent.lab.tables.naming import segment_of, window_of
from block_recurrent.lab.tables.paper import row_figures
from block_recurrent.lab.tables.rows import TableRow, reference
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import train, workdir
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import StopRequest

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
    place = row_folder(folder, row)
    workdir.check_claim(place, row.config)
    path = place / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def train_row(base: ExperimentConfig, row: TableRow, folder: Path, stop: StopRequest) -> None:
    """Trains, evaluates and times a row, and writes the result into its work directory.

    Args:
      base: the configuration of the recurrent rows.
      row: of the table.
      folder: of the table.
      stop: is asked to stop.
    """
    # A row's step is compiled for training, for timing, and again after a stop.
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    tokenizer = make_tokenizer(base.data)
    corpora = Corpora(*(tokenize(corpus, tokenizer) for corpus in load_texts(base)))
    place, line = row_folder(folder, row), ProgressLine()
    model, evaluation = train(row.config, place, corpora, line=line, stop=stop)
    line.show("timing its step in turn with the reference's")
    result = {
        "row": row.name,
        "paper_row": row.paper,
        "parameters": count_parameters(model),
        "parameters_without_embedding": count_parameters(model, embedding=False),
        "segment": segment_of(row.config),
        "window": window_of(row.config),
        "steps": row.config.training.num_steps,
        "learning_rate": row.config.optimizer.learning_rate,
        "step_time": time_step(row.config, reference(base).config),
        **evaluation.metrics(),
        "paper": row_figures(row.paper)._asdict(),
    }
    write_whole(place / "result.json", json.dumps(result, indent=2) + "\n")


def time_step(config: ExperimentConfig, reference: ExperimentConfig) -> float:
    """The step time relative to the reference's, steps of both taken in turn."""
    runs = {"row": TimedStep(config).run, "reference": TimedStep(reference).run}
    seconds = time_in_turn(runs, TIMING_ROUNDS)
    return ratio(seconds["row"], seconds["reference"])
