"""Loading the documents that a configuration names."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from block_recurrent.config import DataConfig
from block_recurrent.data.corpus import Corpus, load_corpus
from block_recurrent.data.records import Columns
from block_recurrent.data.text_files import Reading
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.token_cache import cached_tokens
from block_recurrent.data.tokenized import TokenizedCorpus, tokenize
from block_recurrent.data.vocabularies import make_tokenizer

Report = Callable[[str], None]


class Corpora(NamedTuple):
    """Two splits of a run's documents, as tokens."""

    train: TokenizedCorpus
    validation: TokenizedCorpus


def load_documents(config: DataConfig, split: str) -> Corpus:
    """Returns the text of a split, for sources that are read into memory.

    Raises:
      DataError: a source that cannot be read, or a split without documents.
    """
    return load_corpus(
        config.source,
        split,
        path=config.path,
        validation_percent=config.validation_percent,
        reading=Reading(
            _columns(config), config.split_by, config.split_bytes, config.document_start
        ),
        download=config.download,
    )


def _columns(config: DataConfig) -> Columns:
    return Columns(config.id_column, config.text_column, config.title_column)


def makes_token_cache(config: DataConfig) -> bool:
    """Returns whether the first process that reads the documents writes a token cache."""
    return config.source == "tfds"


def load_split(
    config: DataConfig, split: str, report: Report = lambda text: None
) -> TokenizedCorpus:
    """Returns the tokens of a split.

    A prepared corpus (`tfds`) is read through its token cache, which the first run makes.

    Args:
      config: names the documents and the tokenizer.
      split: "train", "validation" or "test".
      report: called with lines about the progress, for people.

    Raises:
      DataError: a source that cannot be read, or a split without documents.
    """
    tokenizer, ends = make_tokenizer(config), config.end_of_document
    if not makes_token_cache(config):
        return tokenize(load_documents(config, split), tokenizer, end_of_document=ends)
    assert config.path is not None
    return cached_tokens(
        TfdsDirectory(config.path, _columns(config)),
        split,
        tokenizer,
        Path(config.cache_path or Path(config.path) / "token_cache"),
        lambda size: report(f"tokenizing {split}, once: {size / 1e6:,.0f} MB"),
        end_of_document=ends,
    )


def load_corpora(config: DataConfig, report: Report = lambda text: None) -> Corpora:
    """Returns both splits of a training run. Raises the errors of `load_split`."""
    return Corpora(load_split(config, "train", report), load_split(config, "validation", report))
