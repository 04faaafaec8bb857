"""Documents, tokenizers, and lanes that read long documents segment by segment."""

from block_recurrent.data.corpus import Corpus, load_corpus
from block_recurrent.data.documents import DataError, Document, byte_count, split_of, word_count
from block_recurrent.data.lanes import Batch, TrainingLanes, evaluation_batches
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.token_cache import cached_tokens
from block_recurrent.data.tokenized import TokenizedCorpus, tokenize
from block_recurrent.data.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    make_tokenizer,
)

__all__ = [
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "DataError",
    "Document",
    "SentencePieceTokenizer",
    "TfdsDirectory",
    "TokenizedCorpus",
    "Tokenizer",
    "TrainingLanes",
    "byte_count",
    "cached_tokens",
    "evaluation_batches",
    "load_corpus",
    "make_tokenizer",
    "split_of",
    "tokenize",
    "word_count",
]
