"""Where the gain of the recurrence comes from, on the documents of trained runs.

    block-recurrent analyze runs/rec runs/slide --against=runs/slide --output=runs/analysis
    block-recurrent analyze runs/rec runs/slide --text=novel.txt

Reads the newest checkpoint of each work directory. Prints, for each: loss by position in the
document; by kind of token; gain over the reference by the distance to a word's last occurrence;
loss with the recurrent states cleared, frozen or of another document; loss by length of the
context, and the relative effective context length; how much of the states a block rewrites; which
states tokens attend to. Writes analysis.md, analysis.json and pictures; docs/analysis.md explains
them.
"""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import positive
from block_recurrent.command_line.parser import Parser
from block_recurrent.data.documents import SPLITS
from block_recurrent.lab.analysis.report import make_page
from block_recurrent.lab.analysis.runs import (
    load_corpus,
    load_subjects,
    take_documents,
    with_reference,
)
from block_recurrent.lab.analysis.study import Options, study
from block_recurrent.lab.tables.layout import publish
from block_recurrent.lab.tables.options import parse_runs
from block_recurrent.system.devices import check_device
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import stop_on_signal

COUNTS = {
    "documents": (20, "how many are read, spread over the split"),
    "tokens": (32768, "of each document, from its start"),
    "batch_size": (Options().lanes, "documents that are read at once"),
    "positions": (Options().positions, "tokens at which the length of the context is varied"),
    "context": (Options().longest_context, "longest context there, in tokens"),
    "freeze_at": (Options().freeze_at, "position from which on states are frozen, in tokens"),
}


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="WORKDIR",
        help="reference run; the first one without recurrent layers unless given",
    )
    parser.add_argument("--split", default="validation", choices=SPLITS)
    parser.add_argument("--text", type=Path, metavar="FILE", help="read this in place of the split")
    for name, (usual, text) in COUNTS.items():
        text = f"{text}; {usual:,} unless given"
        parser.add_argument(f"--{name}", type=positive, default=usual, metavar="N", help=text)
    arguments, found = parse_runs(parser, argv, "runs/analysis")
    runs, reference = with_reference(found, arguments.against)
    options = Options(
        lanes=arguments.batch_size,
        positions=arguments.positions,
        longest_context=arguments.context,
        freeze_at=arguments.freeze_at,
    )
    line = ProgressLine()
    with stop_on_signal(nothing_to_save=True), training_knobs_named(runs[0].config):
        check_device()
        whole, tokenizer = load_corpus(runs, arguments.split, arguments.text, line.show)
        corpus = take_documents(whole, tokenizer, arguments.documents, arguments.tokens)
        subjects = load_subjects(runs)
        figures = study(subjects, reference, corpus, tokenizer, options, line.show)
        publish(make_page(figures), arguments.output)
    return 0
