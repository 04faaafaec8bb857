"""Trains a SentencePiece vocabulary on the training documents of a prepared corpus.

    block-recurrent train-vocab --corpus=corpora/arxiv --output=vocab/arxiv.model

White space is kept and rare characters fall back to bytes, so no text is lost. The same corpus and
options give the same file. The program prints the settings that a run needs.
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.corpora.vocabulary import make_vocabulary
from block_recurrent.system.signals import stop_on_signal


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
        make_vocabulary(
            arguments.corpus, arguments.output, arguments.vocab_size, arguments.max_megabytes
        )
    return 0
