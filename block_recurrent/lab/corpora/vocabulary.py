"""Training a SentencePiece vocabulary that loses no text."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from block_recurrent.data.documents import DataError, Document, byte_count
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.tokenizers import SentencePieceTokenizer
from block_recurrent.system.extras import require
from block_recurrent.system.files import write_whole

# The result of unigram training depends on the number of threads.
_THREADS = 16
_LONGEST_LINE = 2048
_MEGABYTE = 10**6


def train_vocabulary(
    documents: Iterable[Document], vocab_size: int, *, share: float = 1.0
) -> bytes:
    """Returns a unigram vocabulary (Kudo 2018, arXiv 1804.10959), the same for the same documents.

    White space is kept as it is, newline and tab are pieces of their own, and characters without a
    piece fall back to the bytes of UTF-8, so every text comes back from its tokens. Ids 0, 1 and 2
    are <pad>, </s> and <unk>, as in T5's vocabulary.

    Args:
      documents: the text to learn from.
      vocab_size: number of pieces, with the 256 bytes.
      share: the share of the lines that is used, in (0, 1], spread evenly over the documents.

    Raises:
      DataError: there is not enough text for so many pieces, or the size is too small.
      MissingPackage: sentencepiece is not installed.
    """
    sentencepiece = require("sentencepiece", "data")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, share),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n", "\t"],
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=_THREADS,
            train_extremely_large_corpus=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no vocabulary of {vocab_size:,} pieces can be trained on this text: "
            f"{str(error).rpartition(']')[2].strip() or error}"
        ) from error
    return model.getvalue()


def _lines(documents: Iterable[Document], share: float) -> Iterator[str]:
    """Yields a share of the lines, long ones in parts, without NUL, which training cannot take."""
    number = 0
    for document in documents:
        for line in document.text.replace("\0", "").split("\n"):
            for begin in range(0, len(line), _LONGEST_LINE):
                number += 1
                if int(number * share) > int((number - 1) * share):
                    yield line[begin : begin + _LONGEST_LINE]


def make_vocabulary(corpus_path: Path, path: Path, vocab_size: int, max_megabytes: int) -> None:
    """Trains a vocabulary, writes and checks it, and prints what a run's configuration needs.

    Args:
      corpus_path: folder of a prepared corpus.
      path: the model file to write.
      vocab_size: number of pieces.
      max_megabytes: megabytes of text to learn from, spread evenly over the documents.

    Raises:
      DataError: the corpus cannot be read or does not suffice, the output exists, or a text does
        not come back from its tokens.
    """
    if path.exists():
        raise DataError(f"{path} exists already: remove it or choose another --output.")
    corpus = TfdsDirectory(corpus_path)
    total = sum(map(byte_count, corpus.documents("train")))
    share = min(1.0, max_megabytes * _MEGABYTE / max(total, 1))
    print(
        f"{corpus.name} train: {total:,} bytes, learning from {share:.1%} of the lines", flush=True
    )
    model = train_vocabulary(corpus.documents("train"), vocab_size, share=share)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, model)
    tokenizer = SentencePieceTokenizer(path)
    split = next(s for s in ("validation", "test", "train") if s in corpus.splits)
    tokens = size = 0
    for document in corpus.documents(split):
        encoded = tokenizer.encode(document.text)
        if tokenizer.decode(encoded) != document.text:
            raise DataError(f"{path} loses text of document {document.id!r}.")
        tokens += len(encoded)
        size += byte_count(document)
    print(
        f"{split}: {size:,} bytes are {tokens:,} tokens, {size / tokens:.2f} bytes a token\n"
        f"written to {path}; for a run:\n"
        f"  --gin.data.tokenizer=sentencepiece --gin.model.vocab_size={vocab_size}\n"
        f"  --gin.data.vocab_path={path}\n"
        f"  --gin.data.vocab_sha256={hashlib.sha256(model).hexdigest()}"
    )
