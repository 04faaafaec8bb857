"""Trains a SentencePiece vocabulary on the training documents of a prepared corpus.

    python experiments/train_vocab.py --corpus=corpora/arxiv --output=vocab/arxiv.model

White space is kept and rare characters fall back to bytes, so no text is lost. The same corpus and
options give the same file. The program prints what a run's configuration needs.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import errors
from block_recurrent.data import DataError, SentencePieceTokenizer, TfdsDirectory, byte_count
from block_recurrent.files import write_whole
from block_recurrent.preparation.vocabulary import train_vocabulary
from block_recurrent.training.signals import stop_on_signal
from options import Parser

MEGABYTE = 10**6


def make_parser() -> argparse.ArgumentParser:
    """The program's command line."""
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
    return parser


def check(corpus: TfdsDirectory, path: Path) -> str:
    """Encodes a held-out split, or the training one, and says how it went.

    Raises:
      DataError: a text does not come back from its tokens.
    """
    tokenizer = SentencePieceTokenizer(path)
    split = next(s for s in ("validation", "test", "train") if s in corpus.splits)
    tokens = size = 0
    for document in corpus.documents(split):
        encoded = tokenizer.encode(document.text)
        if tokenizer.decode(encoded) != document.text:
            raise DataError(f"{path} loses text of document {document.id!r}.")
        tokens += len(encoded)
        size += byte_count(document)
    return f"{split}: {size:,} bytes are {tokens:,} tokens, {size / tokens:.2f} bytes a token"


def run(arguments: argparse.Namespace) -> None:
    """Trains, writes, checks and prints.

    Raises:
      DataError: a corpus that cannot be read or does not suffice, or an output that exists.
    """
    if arguments.output.exists():
        raise DataError(f"{arguments.output} exists already: remove it or choose another --output.")
    corpus = TfdsDirectory(arguments.corpus)
    total = sum(map(byte_count, corpus.documents("train")))
    share = min(1.0, arguments.max_megabytes * MEGABYTE / max(total, 1))
    print(
        f"{corpus.name} train: {total:,} bytes, learning from {share:.1%} of the lines", flush=True
    )
    model = train_vocabulary(corpus.documents("train"), arguments.vocab_size, share=share)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output, model)
    print(check(corpus, arguments.output))
    print(
        f"written to {arguments.output}; for a run:\n"
        f"  --gin.data.tokenizer=sentencepiece --gin.model.vocab_size={arguments.vocab_size}\n"
        f"  --gin.data.vocab_path={arguments.output}\n"
        f"  --gin.data.vocab_sha256={hashlib.sha256(model).hexdigest()}"
    )


@errors.reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.vocab_size < 1 or arguments.max_megabytes < 1:
        parser.error("--vocab_size and --max_megabytes must be at least 1")
    with stop_on_signal(nothing_to_save=True):
        run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
