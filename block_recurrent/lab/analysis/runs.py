"""The runs and documents that are analysed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from block_recurrent.config import DataConfig
from block_recurrent.data import DataError, TokenizedCorpus, Tokenizer, make_tokenizer
from block_recurrent.data.loading import load_split
from block_recurrent.lab.analysis.documents import one_document
from block_recurrent.lab.analysis.study import Report, Subject
from block_recurrent.lab.tables.naming import distinct_names
from block_recurrent.runs.reading import Run, SelectionError, read_runs
from block_recurrent.runs.trained import load


def load_subjects(runs: Sequence[Run]) -> list[Subject]:
    """The runs' newest models.

    Raises:
      CheckpointError: a run has no checkpoint.
    """
    names = distinct_names([run.config for run in runs])
    names = [
        f"{name} ({run.workdir.name})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]
    return [
        Subject(name, str(run.workdir), *_restored(run))
        for name, run in zip(names, runs, strict=True)
    ]


def _restored(run: Run) -> tuple[int, Any, Any]:
    trained = load(run.workdir)
    return trained.step, trained.config, trained.model


def load_corpus(
    runs: Sequence[Run], split: str, text: Path | None, report: Report
) -> tuple[TokenizedCorpus, Tokenizer]:
    """The documents that all runs are analysed on, and their tokenizer.

    Args:
      runs: at least one.
      split: of the runs' corpus.
      text: a file to read in place of the corpus.
      report: takes the progress, for people.

    Raises:
      DataError: documents that cannot be read, or none.
      SelectionError: runs with other documents or another tokenizer than the first.
    """
    first, *others = runs
    tokenizer = make_tokenizer(first.config.data)
    for run in others:
        name = make_tokenizer(run.config.data).name
        if name != tokenizer.name:
            raise SelectionError(
                f"{first.workdir} and {run.workdir} have different tokenizers ({tokenizer.name} "
                f"and {name}), so losses of their tokens cannot be compared: analyse them apart"
            )
    if text is not None:
        return one_document(text.name, _read(text), tokenizer), tokenizer
    corpus = load_split(first.config.data, split, report)
    known = {_documents(first.config.data)}
    for run in others:
        if _documents(run.config.data) in known:
            continue
        if load_split(run.config.data, split, report).fingerprint != corpus.fingerprint:
            raise SelectionError(
                f"{first.workdir} and {run.workdir} have different {split} documents, so their "
                "losses cannot be compared: analyse them apart, or on a --text=FILE"
            )
        known.add(_documents(run.config.data))
    return corpus, tokenizer


def _documents(data: DataConfig) -> tuple[Any, ...]:
    return data.source, data.path, data.validation_percent


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise DataError(f"--text={path}: {error.strerror}") from error


def with_reference(runs: Sequence[Run], against: Path | None) -> list[Run]:
    """The runs, and that in the directory `against` if it is given and not among them.

    Raises:
      ConfigError: there is no run in it.
    """
    if against is None or find_reference(runs, against) is not None:
        return list(runs)
    return [*runs, *read_runs([against])]


def find_reference(runs: Sequence[Run], against: Path | None) -> int | None:
    """The index of the run in the directory `against`, or of the first without recurrent layers."""
    for index, run in enumerate(runs):
        if against is None and not getattr(run.config.model, "recurrent_layers", ()):
            return index
        if against is not None and run.workdir.resolve() == against.resolve():
            return index
    return None
