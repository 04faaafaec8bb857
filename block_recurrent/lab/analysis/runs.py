"""The trained runs that are analysed, and the documents that all of them read."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from block_recurrent.data import (
    Corpus,
    DataError,
    Document,
    TokenizedCorpus,
    Tokenizer,
    byte_count,
    make_tokenizer,
    tokenize,
    word_count,
)
from block_recurrent.data.loading import load_split
from block_recurrent.data.tokenized import Fingerprint
from block_recurrent.lab.analysis.study import Subject
from block_recurrent.lab.tables.naming import distinct_names, is_recurrent
from block_recurrent.runs.reading import Run, SelectionError, read_runs, same_tokens
from block_recurrent.runs.trained import load


def with_reference(runs: Sequence[Run], against: Path | None) -> tuple[list[Run], int | None]:
    """The runs, and the index of the one that the others are compared with.

    That is the run in the directory `against`, which may be another, or, if it is None, the first
    run without recurrent layers.

    Raises:
      ConfigError: there is no run in `against`.
    """
    runs = list(runs)
    if against is None:
        plain = (index for index, run in enumerate(runs) if not is_recurrent(run.config))
        return runs, next(plain, None)
    folders = [run.workdir.resolve() for run in runs]
    if against.resolve() in folders:
        return runs, folders.index(against.resolve())
    return [*runs, *read_runs([against])], len(runs)


def load_subjects(runs: Sequence[Run]) -> list[Subject]:
    """The runs' newest models.

    Raises:
      CheckpointError: a run has no checkpoint.
      SelectionError: the models have not been trained on the same number of tokens.
    """
    names, subjects, first = distinct_names([run.config for run in runs]), [], 0.0
    for name, run in zip(names, runs, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({run.workdir.name})"
        trained = load(run.workdir)
        seen = run.tokens_at(trained.step)
        first = first or seen
        if seen and not same_tokens(first, seen):
            raise SelectionError(
                f"{runs[0].workdir} has been trained on {first:,.0f} tokens and {run.workdir} on "
                f"{seen:,.0f}, so they cannot be compared: train them equally long, or analyse "
                "them apart"
            )
        subjects.append(
            Subject(name, str(run.workdir), trained.step, trained.config, trained.model)
        )
    return subjects


def load_corpus(
    runs: Sequence[Run], split: str, text: Path | None, say: Callable[[str], None]
) -> tuple[TokenizedCorpus, Tokenizer]:
    """The documents that all runs are analysed on, and their tokenizer.

    Args:
      runs: at least one.
      split: of the runs' corpus.
      text: a file to read in place of the corpus.
      say: takes the progress, for people.

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
        return one_document(text, tokenizer), tokenizer
    corpus = load_split(first.config.data, split, say)
    fingerprints = {_source(first): corpus.fingerprint}
    for run in others:
        if _source(run) not in fingerprints:
            fingerprints[_source(run)] = load_split(run.config.data, split, say).fingerprint
        if fingerprints[_source(run)] != corpus.fingerprint:
            raise SelectionError(
                f"{first.workdir} and {run.workdir} have different {split} documents, so their "
                "losses cannot be compared: analyse them apart, or on a --text=FILE"
            )
    return corpus, tokenizer


def _source(run: Run) -> tuple:
    data = run.config.data
    return data.source, data.path, data.validation_percent


def one_document(path: Path, tokenizer: Tokenizer) -> TokenizedCorpus:
    """A corpus of a single text.

    Raises:
      DataError: the file cannot be read, or it is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise DataError(f"--text={path}: {error.strerror}") from error
    if not text:
        raise DataError(f"{path.name} is empty: give a file with some text")
    return tokenize(Corpus((Document(path.name, "", text),), path.name), tokenizer)


def take_documents(
    corpus: TokenizedCorpus, tokenizer: Tokenizer, count: int, length: int
) -> TokenizedCorpus:
    """At most `count` documents, evenly spread over the corpus, of each the first `length` tokens.

    Args:
      corpus: the documents.
      tokenizer: that made their tokens.
      count: at least 1.
      length: at least 1.

    Raises:
      DataError: there are no documents, or the tokens of one are damaged.
    """
    if not len(corpus):
        raise DataError(f"{corpus.origin} has no documents: there is nothing to analyse")
    chosen = np.unique(np.linspace(0, len(corpus) - 1, min(count, len(corpus))).round().astype(int))
    fingerprint, pieces, documents = Fingerprint(tokenizer.name), [], []
    for index in chosen.tolist():
        corpus.verify(index)
        begin, end = corpus.span(index)
        pieces.append(np.asarray(corpus.tokens[begin : min(end, begin + length)]))
        documents.append(Document(str(corpus.ids[index]), "", tokenizer.decode(pieces[-1])))
        fingerprint.add(documents[-1].id, pieces[-1])
    tokens = np.concatenate(pieces)
    return dataclasses.replace(
        corpus,
        ids=tuple(document.id for document in documents),
        tokens=tokens,
        ends=np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
        byte_counts=np.array(list(map(byte_count, documents)), np.int64),
        word_counts=np.array(list(map(word_count, documents)), np.int64),
        lost=0,
        fingerprint=fingerprint.hexdigest(),
        notes="",
        checksums=None,
    )
