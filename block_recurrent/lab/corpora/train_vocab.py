"""Trains a SentencePiece vocabulary on the training documents of a prepared corpus.

    block-recurrent train-vocab --corpus=corpora/arxiv --output=vocab/arxiv.model

White space is kept and rare characters fall back to bytes, so no text is lost. The same corpus and
options give the same file. The program prints the settings that a run needs.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.data.documents import DataError, Document, byte_count
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.vocabularies import SentencePieceTokenizer
from block_recurrent.system.extras import require
from block_recurrent.system.files import write_whole
from block_recurrent.system.signals import stop_on_signal

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


def _make(corpus: TfdsDirectory, path: Path, vocab_size: int, max_megabytes: int) -> None:
    """Trains a vocabulary, writes and checks it, and prints what a run's configuration needs."""
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


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", required=True, type=Path, help="folder of prepare_data.py")
    parser.add_argument("--output", required=True, type=Path, help="the model file to write")
    parser.add_argument("--vocab_size", type=int, default=32_000, help="pieces (32000)")
    parser.add_argument(
        "--max_megabytes",
        type=int,
        default=500,
        help="of text to learn from, spread evenly over the documents (500)",
    )
    arguments = parser.parse_args(argv)
    if arguments.vocab_size < 1 or arguments.max_megabytes < 1:
        parser.error("--vocab_size and --max_megabytes must be at least 1")
    with stop_on_signal(nothing_to_save=True):
        if arguments.output.exists():
            raise DataError(
                f"{arguments.output} exists already: remove it or choose another --output."
            )
        corpus = TfdsDirectory(arguments.corpus)
        _make(corpus, arguments.output, arguments.vocab_size, arguments.max_megabytes)
    return 0
