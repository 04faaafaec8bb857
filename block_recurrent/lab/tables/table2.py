"""Word-level perplexity on PG19 from work directories, beside the paper's Table 2.

    block-recurrent table2 runs/pg19_rec_650m

The perplexity is exp(nats of all documents / words). The published counts of words are used if
`block-recurrent evaluate` scored a whole split; else the words of the scored documents are counted.

Runs on enwik8, text8 and WikiText-103 have tables of their own, beside Transformer-XL's figures.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.lab.corpora.pg19 import COUNTS
from block_recurrent.lab.tables.layout import (
    MISSING,
    Page,
    TextTable,
    color_of,
    explain_markers,
    label_logarithmic,
    label_rows,
    publish,
    short_count,
)
from block_recurrent.lab.tables.options import parse_runs
from block_recurrent.lab.tables.paper import PG19_WORDS, TABLE_2, TRANSFORMER_XL
from block_recurrent.lab.tables.seed_groups import group_runs
from block_recurrent.runs.reading import Run
from block_recurrent.training.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = Mapping[str, Any]
# A larger difference to the published count of words means that some book is not whole.
TOLERANCE = 0.01
COLUMNS = ("model", "parameters", "tokenizer", "seeds", "steps")
LEFT = ("model", "tokenizer")
DESCRIPTION = (
    "Word-level perplexity of PG19, exp(nats / words). Words used: published is the count of the "
    "whole split, which holds only if every book was scored; counted is that of the documents "
    "that were scored, or of validation during training, which does not say how many they were. "
    "The figures of the paper are those of its Table 2, on the test split."
)
BENCHMARKS = (
    "enwik8 and text8: bits per character, which is a byte. WikiText-103: word-level perplexity by "
    "the words between white space; Dai et al. 2019 count the ends of lines too. Their figures are "
    "those of their tables 1 to 3, on the test split, by the number of all parameters."
)


class WordPerplexity(NamedTuple):
    """Word-level perplexity of a run at a step, and the number of words that it was computed with.

    `published` says whether that is the published number of words.
    """

    step: int
    perplexity: float
    words: int
    published: bool


def word_perplexity(
    split: str, step: int, evaluation: Evaluation, books: int | None
) -> WordPerplexity:
    """The word-level perplexity, exp(nats / words), of an evaluation of a split at a step.

    `books` is how many documents were scored, None if that is not known.
    """
    published = PG19_WORDS[split]
    full = books == COUNTS[split] and abs(evaluation.words / published - 1) < TOLERANCE
    words = published if full else evaluation.words
    perplexity = evaluation._replace(words=words).word_perplexity
    return WordPerplexity(step, perplexity, words, full)


class BenchmarkFigure(NamedTuple):
    """The figure of a run at a step, on a corpus of Transformer-XL's paper."""

    step: int
    figure: float


def _newest(run: Run, split: str) -> tuple[int, Evaluation, int | None] | None:
    """A run's last evaluation on a split, by `evaluate.py` or in training.

    Returns the step, the evaluation, and how many documents were scored, None if that is not known.
    """
    scored = run.scored.get(split)
    last = run.points[-1] if run.points and split == "validation" else None
    if scored and (last is None or scored.step >= last.step):
        return scored.step, scored.evaluation, scored.documents
    return (last.step, last.evaluation, None) if last else None


def newest_word_perplexity(run: Run, split: str) -> WordPerplexity | None:
    """The perplexity of a run's last evaluation on a split."""
    newest = _newest(run, split)
    return word_perplexity(split, *newest) if newest else None


def newest_benchmark_figure(run: Run, split: str) -> BenchmarkFigure | None:
    """Bits per character of a run's last evaluation on a split, or of words the perplexity."""
    newest = _newest(run, split)
    if newest is None:
        return None
    step, evaluation, _ = newest
    of_words = run.config.data.corpus_name.casefold() == "wikitext-103"
    return BenchmarkFigure(
        step, evaluation.word_perplexity if of_words else evaluation.bits_per_byte
    )


def make_page(runs: Sequence[Run]) -> Page:
    """The page with the tables; it names the runs on other corpora, which are left out.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    lines = _lines(_on("PG19", runs), newest_word_perplexity)
    rows = [_cells(line, _words_used) for line in lines]
    for (name, size), perplexity in TABLE_2.items():
        rows.append([f"{name} (paper)", size, "", "", "", "", "", perplexity, ""])
    columns = [*COLUMNS, "validation", "words used", "test", "words used"]
    tables = {"": TextTable(columns, rows, LEFT)}
    benchmarks = {
        corpus: _lines(found, newest_benchmark_figure)
        for corpus in TRANSFORMER_XL
        if (found := _on(corpus, runs))
    }
    for corpus, found in benchmarks.items():
        rows = [_cells(line, _figure) for line in found]
        for size, figure in TRANSFORMER_XL[corpus].items():
            rows.append(["Transformer-XL (Dai et al.)", size, "", "", "", "", figure])
        tables[corpus] = TextTable([*COLUMNS, "validation", "test"], rows, LEFT)
    known = {name.casefold() for name in ("PG19", *TRANSFORMER_XL)}
    left_out = [
        str(run.workdir) for run in runs if run.config.data.corpus_name.casefold() not in known
    ]
    description = f"{DESCRIPTION} {BENCHMARKS}" if benchmarks else DESCRIPTION
    if left_out:
        description += (
            f" Left out, being on none of the corpora by data.name: {', '.join(left_out)}."
        )
    data = {
        "runs": lines,
        "paper": [
            {"model": name, "size": size or None, "test": float(perplexity)}
            for (name, size), perplexity in TABLE_2.items()
        ],
        "benchmarks": benchmarks,
        "left_out": left_out,
    }
    return Page("table2", tables, description, data, {"table2": partial(draw, lines)})


def _on(corpus: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.config.data.corpus_name.casefold() == corpus.casefold()]


def _lines(runs: Sequence[Run], newest: Callable[[Run, str], Any]) -> list[Line]:
    return [
        {
            "name": group.name,
            "workdir": str(run.workdir),
            "parameters_without_embedding": group.parameters,
            "tokenizer": run.config.data.tokenizer,
            "training_seed": run.config.training.seed,
            "data_seed": run.config.data.seed,
            "step": run.step,
            "num_steps": run.config.training.num_steps,
            "finished": run.finished,
            **{split: newest(run, split) for split in PG19_WORDS},
        }
        for group in group_runs(runs)
        for run in group.runs
    ]


def _cells(line: Line, show: Callable[[Any], list[str]]) -> list[str]:
    """A run's cells, one for each column."""
    scores = [line[split] for split in PG19_WORDS]
    steps = dict.fromkeys(score.step for score in scores if score) or [line["step"]]
    done = ", ".join(f"{step:,}" for step in steps)
    if min(steps) < line["num_steps"]:
        done += f" of {line['num_steps']:,}"
    cells = [line["name"], short_count(line["parameters_without_embedding"]), line["tokenizer"]]
    cells += [f"{line['training_seed']}, {line['data_seed']}", done]
    return cells + [cell for score in scores for cell in show(score)]


def _words_used(score: WordPerplexity | None) -> list[str]:
    if score is None:
        return [MISSING, MISSING]
    kind = "published" if score.published else "counted"
    return [f"{score.perplexity:,.2f}", f"{score.words:,} {kind}"]


def _figure(score: BenchmarkFigure | None) -> list[str]:
    return [MISSING if score is None else f"{score.figure:,.3f}"]


def draw(lines: Sequence[Line], picture: "Figure") -> None:
    """Draws the test perplexity of all, and validation of the runs, on a logarithmic axis."""
    names = [f"{n} {line['name'].partition(' ')[0]}" for n, line in enumerate(lines, 1)]
    names += [f"{model} {size}".rstrip() for model, size in TABLE_2]
    picture.set_size_inches(9, 0.3 * len(names) + 1.5)
    panel = picture.subplots()
    for index, line in enumerate(lines):
        color = color_of(line["name"])
        for split, shape, face in (("validation", "s", "none"), ("test", "o", color)):
            if found := line[split]:
                panel.plot(found.perplexity, index, shape, color=color, markerfacecolor=face)
    for index, perplexity in enumerate(TABLE_2.values(), len(lines)):
        panel.plot(float(perplexity), index, "D", color="black", markerfacecolor="none")
    shapes = {"validation": ("s", "none"), "test": ("o", "black"), "test, paper": ("D", "none")}
    explain_markers(panel, shapes)
    panel.set_xscale("log")
    label_logarithmic(panel.xaxis)
    label_rows(panel, names, "word-level perplexity, runs numbered as in the table")
    panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments, runs = parse_runs(Parser(description=__doc__), argv, "runs/table2")
    publish(make_page(runs), arguments.output)
    return 0
