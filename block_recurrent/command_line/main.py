"""The command `block-recurrent`: one entry point for all programs."""

import importlib
import sys
from collections.abc import Sequence

import block_recurrent
from block_recurrent.command_line.parser import DEBUG
from block_recurrent.system.text import did_you_mean

COMMAND = "block-recurrent"
# Subcommand -> its module in the package, and what it does. Modules are imported when called: the
# core never imports the lab.
PROGRAMS = {
    "train": ("command_line.train", "train a model, or continue a run"),
    "evaluate": ("command_line.evaluate", "score a trained model on a split of its corpus"),
    "generate": ("command_line.generate", "continue a text with a trained model"),
    "export": ("command_line.export", "write a trained model to one file, in safetensors format"),
    "table": ("lab.tables.train_table", "train every row of the paper's Table 1 at a small size"),
    "prepare-data": ("lab.corpora.prepare_data", "make a corpus from raw data"),
    "train-vocab": ("lab.corpora.train_vocab", "train a SentencePiece vocabulary on a corpus"),
    "compile": ("lab.compile.compile", "compile a step for accelerators that are not there"),
    "benchmark": ("lab.benchmark.benchmark", "time steps, evaluation, generation, checkpoints"),
    "selftest": ("lab.benchmark.selftest", "compare the kinds of attention on this machine"),
    "table1": ("lab.tables.table1", "make the paper's Table 1 from work directories"),
    "table2": ("lab.tables.table2", "make the paper's Table 2 from work directories"),
    "curves": ("lab.tables.curves", "compare validation curves over seeds"),
    "scaling": ("lab.tables.scaling", "compare runs by their number of parameters"),
    "recall": ("lab.recall.recall", "find how long facts are remembered"),
    "analyze": ("lab.analysis.analyze", "find where the gain of the recurrence comes from"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the first word names with the others; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in words if word != DEBUG), "--help")
    if name in ("-h", "--help"):
        listed = "".join(f"  {name:14}{line}\n" for name, (_, line) in PROGRAMS.items())
        print(f"usage: {COMMAND} PROGRAM [OPTIONS]\n\n{listed}")
        print(f"{COMMAND} PROGRAM --help shows its options; --gin_file finds the installed files.")
        return 0
    if name == "--version":
        print(f"{COMMAND} {block_recurrent.__version__}")
        return 0
    if name not in PROGRAMS:
        hint = did_you_mean(name, PROGRAMS) or f"; {COMMAND} --help lists them"
        print(f"{COMMAND}: error: there is no program {name!r}{hint}", file=sys.stderr)
        return 2
    words.remove(name)
    sys.argv = [f"{COMMAND} {name}", *words]  # what help and errors call the program
    return importlib.import_module(f"block_recurrent.{PROGRAMS[name][0]}").main(words)


if __name__ == "__main__":
    sys.exit(main())
