"""The command `block-recurrent`: one entry point for all programs."""

import importlib
import sys
from collections.abc import Sequence

import block_recurrent
from block_recurrent.command_line.parser import DEBUG
from block_recurrent.system.text import did_you_mean

COMMAND = "block-recurrent"
CORE, LAB = "block_recurrent.command_line", "block_recurrent.lab.programs"
TABLES = "block_recurrent.lab.tables"
# Subcommand -> its module, and what it does. The lab's modules are imported by name, when called.
PROGRAMS = {
    "train": (f"{CORE}.train", "train a model, or continue a run"),
    "evaluate": (f"{CORE}.evaluate", "score a trained model on a split of its corpus"),
    "generate": (f"{CORE}.generate", "continue a text with a trained model"),
    "table": (f"{LAB}.train_table", "train every row of the paper's Table 1 at a small size"),
    "prepare-data": (f"{LAB}.prepare_data", "make a corpus from raw data"),
    "train-vocab": (f"{LAB}.train_vocab", "train a SentencePiece vocabulary on a corpus"),
    "compile": (f"{LAB}.compile", "compile a training step for accelerators that are not there"),
    "benchmark": (f"{LAB}.benchmark", "time training steps, evaluation, generation, checkpoints"),
    "table1": (f"{TABLES}.table1", "make the paper's Table 1 from work directories"),
    "table2": (f"{TABLES}.table2", "make the paper's Table 2 from work directories"),
    "curves": (f"{TABLES}.curves", "compare validation curves over seeds"),
    "scaling": (f"{TABLES}.scaling", "compare runs by their number of parameters"),
    "analyze": (f"{LAB}.analyze", "find where the gain of the recurrence comes from"),
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
    return importlib.import_module(PROGRAMS[name][0]).main(words)


if __name__ == "__main__":
    sys.exit(main())
