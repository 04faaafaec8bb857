"""The rows of the paper's Table 1 at a small size: trained one after the other, then reported."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Corpus, TokenizedCorpus, byte_count, make_tokenizer, tokenize
from block_recurrent.data.loading import Corpora, load_documents
from block_recurrent.measure.timing import TimedStep, ratio, time_in_turn
from block_recurrent.model.parameters import count_parameters
from block_recurrent.reports.paper import row_figures
from block_recurrent.reports.report import Report, write_report
from block_recurrent.reports.yardsticks import lzma_bits_per_byte, order_2_bits_per_byte
from block_recurrent.runs import train, workdir
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine, duration
from block_recurrent.system.signals import StopRequest
from block_recurrent.training.build import make_lanes
from block_recurrent.training.rows import Row, reference, table_rows

# Characters read of each document.
TRAIN_CHARACTERS = 131_072
VALIDATION_CHARACTERS = 16_384
TIMING_ROUNDS = 15


def shorten(corpus: Corpus, characters: int) -> Corpus:
    """The beginning of every document, so that no single one outweighs the others."""
    documents = tuple(d._replace(text=d.text[:characters]) for d in corpus.documents)
    return dataclasses.replace(corpus, documents=documents)


def count_bytes(corpus: Corpus) -> int:
    """UTF-8 bytes of all documents."""
    return sum(map(byte_count, corpus.documents))


def count_tokens(config: ExperimentConfig, corpus: TokenizedCorpus) -> int:
    """Targets in all steps of a run."""
    lanes = make_lanes(config, corpus)
    return sum(int(next(lanes).mask.sum()) for _ in range(config.training.num_steps))


def with_tokens(config: ExperimentConfig, corpus: TokenizedCorpus, tokens: int) -> ExperimentConfig:
    """`config` with as many steps as see at least `tokens` targets."""
    lanes, seen, steps = make_lanes(config, corpus), 0, 0
    while seen < tokens:
        seen += int(next(lanes).mask.sum())
        steps += 1
    training = dataclasses.replace(config.training, num_steps=steps)
    return dataclasses.replace(config, training=training)


class SmallTable:
    """The rows in progress: what is done is in `directory`, a folder a row.

    Args:
      base: the configuration of the recurrent rows.
      directory: of all results.
      stop: asked to stop.
    """

    def __init__(self, base: ExperimentConfig, directory: Path, stop: StopRequest):
        self.train_text = shorten(load_documents(base.data, "train"), TRAIN_CHARACTERS)
        self.validation_text = shorten(
            load_documents(base.data, "validation"), VALIDATION_CHARACTERS
        )
        tokenizer = make_tokenizer(base.data)
        self.corpora = Corpora(
            tokenize(self.train_text, tokenizer), tokenize(self.validation_text, tokenizer)
        )
        self.tokens = count_tokens(reference(base).config, self.corpora.train)
        self.base = base
        self.stop = stop
        self.directory = directory
        self.rows = [
            row._replace(config=with_tokens(row.config, self.corpora.train, self.tokens))
            for row in table_rows(base)
        ]
        self._reference: TimedStep | None = None
        # A row's step is compiled for training, for timing, and again after a stop.
        jax.config.update("jax_compilation_cache_dir", str((directory / "compiled").absolute()))

    def run(self) -> list[dict[str, Any]]:
        """The results of all rows; trains those that have none yet."""
        begin, measured, results = time.monotonic(), 0, []
        for number, row in enumerate(self.rows, 1):
            title = f"[{number}/{len(self.rows)}] {row.name}"
            result = self.result(row)
            if result is None:
                result = self.train(row, title)
                measured += 1
            each = (time.monotonic() - begin) / max(measured, 1)
            left = duration(each * (len(self.rows) - number))
            print(
                f"{title}: {result['bits_per_byte']:.3f} bits/byte, "
                f"{result['step_time']:.2f} x the step time of {reference(self.base).name}; "
                f"about {left} left for the other rows",
                flush=True,
            )
            results.append(result)
        return results

    def result(self, row: Row) -> dict[str, Any] | None:
        """What an earlier call found for a row, or None.

        Raises:
          ConfigError: the row's folder holds a run with another configuration.
        """
        folder = self.directory / row.name.replace(":", "-")
        workdir.check_claim(folder, row.config)
        path = folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def train(self, row: Row, title: str) -> dict[str, Any]:
        """Trains, evaluates and times a row."""
        folder = self.directory / row.name.replace(":", "-")
        line = ProgressLine(prefix=f"{title} | ")
        model, evaluation = train(row.config, folder, self.corpora, line=line, stop=self.stop)
        line.show("timing its step in turn with the reference's")
        result = {
            "row": row.name,
            "paper_row": row.paper,
            "parameters": count_parameters(model),
            "parameters_without_embedding": count_parameters(model, embedding=False),
            "segment": row.config.data.segment_length,
            "window": row.config.model.window,
            "steps": row.config.training.num_steps,
            "step_time": self.time_step(row),
            **evaluation.metrics(),
            "paper": row_figures(row.paper)._asdict(),
        }
        write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
        return result

    def time_step(self, row: Row) -> float:
        """The row's step time relative to the reference's, steps of both taken in turn."""
        if self._reference is None:
            self._reference = TimedStep(reference(self.base).config)
        runs = {"row": TimedStep(row.config).run, "reference": self._reference.run}
        seconds = time_in_turn(runs, TIMING_ROUNDS)
        return ratio(seconds["row"], seconds["reference"])

    def report(self, results: list[dict[str, Any]]) -> Report:
        """The finished table and what it was made of."""
        train_documents, validation = self.train_text.documents, self.validation_text.documents
        return Report(
            results,
            yardsticks={
                "lzma, highest preset": lzma_bits_per_byte(validation),
                "order-2 byte model": order_2_bits_per_byte(train_documents, validation),
            },
            description=self.describe(),
        )

    def describe(self) -> str:
        """What was trained, on what, and for how long."""
        base, model = self.base, self.base.model
        train, validation = self.train_text, self.validation_text
        python = ".".join(map(str, sys.version_info[:3]))
        return (
            f"These are small models: {model.num_layers} layers of size {model.model_size}, "
            f"window {model.window}, {model.num_states} states; the paper's have 12 layers of "
            f"size 1024. Each was trained once, with seed {base.training.seed}, on "
            f"{self.tokens:,} bytes (the paper: 500,000 steps of 131,072 tokens) of the source "
            f"code of Python {python}'s standard library: the first {TRAIN_CHARACTERS:,} "
            f"characters of {len(train.documents)} modules and packages, {count_bytes(train):,} "
            f"bytes in all. Validation: the first {VALIDATION_CHARACTERS:,} characters of "
            f"{len(validation.documents)} others, {count_bytes(validation):,} bytes. All rows saw "
            "the same number of tokens to within a step, with the same seed, order of documents "
            f"and optimizer ({base.optimizer.name}, {base.optimizer.schedule} schedule). Every "
            f"step has {base.data.batch_size * base.data.segment_length:,} tokens, so rows with "
            "shorter segments read more documents side by side. Step time is relative "
            f"to {reference(base).name}, measured in turn with it. The order-2 model was counted "
            "on all training bytes; lzma compresses each document on its own. The paper's columns "
            "are bits per token; a blank is a figure that could not be verified."
        )


def train_table(base: ExperimentConfig, folder: Path, stop: StopRequest) -> None:
    """Trains what is left to train, prints the table and writes it, with a picture, to `folder`.

    Args:
      base: the configuration of the recurrent rows.
      folder: of all results.
      stop: asked to stop.

    Raises:
      ConfigError: the folder cannot be used, or a row's holds a run with another configuration.
      WorkdirInUse: another process is training there.
    """
    with workdir.locked(folder):
        table = SmallTable(base, folder, stop)
        print(table.describe() + "\n", flush=True)
        report = table.report(table.run())
        print("\n" + report.text())
        for path in write_report(report, folder):
            print(f"written to {path}")
