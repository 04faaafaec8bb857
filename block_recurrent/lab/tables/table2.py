"""Word-level perplexity on PG19 from work directories, beside the paper's Table 2."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.lab.tables.layout import (
    FAMILIES,
    MISSING,
    Page,
    TextTable,
    label_logarithmic,
    present,
    short_count,
)
from block_recurrent.lab.tables.paper import PG19_SPLITS, TABLE_2
from block_recurrent.lab.tables.seed_groups import SeedGroup, group_runs
from block_recurrent.runs import reading
from block_recurrent.training.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Where the words counted differ from the published count by more, some book is not whole.
TOLERANCE = 0.01

COLUMNS = ("model", "parameters", "tokenizer", "seeds", "steps")
DESCRIPTION = (
    "Word-level perplexity of PG19, exp(nats / words). Words used: published is the count of the "
    "whole split, which holds only if every book was scored; counted is that of the documents "
    "that were scored, or of validation during training, which does not say how many they were. "
    "The figures of the paper are those of its Table 2, on the test split."
)


class WordPerplexity(NamedTuple):
    """Word-level perplexity of a run on a split.

    Attributes:
      step: the step of the run that was scored.
      perplexity: exp(nats / words).
      words: the number of words that it was computed with.
      published: whether that is the published number.
    """

    step: int
    perplexity: float
    words: int
    published: bool

    def cells(self) -> list[str]:
        """Two cells: the perplexity, and the words that it was computed with."""
        kind = "published" if self.published else "counted"
        return [f"{self.perplexity:,.2f}", f"{self.words:,} {kind}"]


def word_perplexity(
    split: str, step: int, evaluation: Evaluation, books: int | None
) -> WordPerplexity:
    """The word-level perplexity of an evaluation.

    Args:
      split: "validation" or "test".
      step: the step of the run that was scored.
      evaluation: sums over the documents that were scored.
      books: how many documents were scored; None if that is not known.
    """
    whole = PG19_SPLITS[split]
    full = books == whole.books and abs(evaluation.words / whole.words - 1) < TOLERANCE
    words = whole.words if full else evaluation.words
    perplexity = evaluation._replace(words=words).word_perplexity
    return WordPerplexity(step, perplexity, words, full)


def newest_word_perplexity(run: reading.Run, split: str) -> WordPerplexity | None:
    """The perplexity of a run's last evaluation on a split, by `evaluate.py` or in training."""
    scored = run.scored.get(split)
    last = run.points[-1] if run.points and split == "validation" else None
    if scored and (last is None or scored.step >= last.step):
        return word_perplexity(split, scored.step, scored.evaluation, scored.documents)
    return word_perplexity(split, last.step, last.evaluation, None) if last else None


class Line(NamedTuple):
    """A run in the table, and its group, which names it."""

    group: SeedGroup
    run: reading.Run

    def cells(self) -> list[str]:
        """The run's cells, one for each column."""
        training_seed, data_seed = self.run.seeds
        cells = [self.group.name, short_count(self.group.parameters)]
        cells += [self.run.config.data.tokenizer, f"{training_seed}, {data_seed}", self._steps()]
        for split in PG19_SPLITS:
            found = newest_word_perplexity(self.run, split)
            cells += found.cells() if found else [MISSING, MISSING]
        return cells

    def _steps(self) -> str:
        total = self.run.config.training.num_steps
        found = [newest_word_perplexity(self.run, split) for split in PG19_SPLITS]
        steps = dict.fromkeys(f.step for f in found if f) or {self.run.step: None}
        done = ", ".join(f"{step:,}" for step in steps)
        return done if all(step >= total for step in steps) else f"{done} of {total:,}"

    def data(self) -> dict[str, Any]:
        """The run and its perplexities as JSON values."""
        found = {split: newest_word_perplexity(self.run, split) for split in PG19_SPLITS}
        return {
            "name": self.group.name,
            "workdir": str(self.run.workdir),
            "parameters_without_embedding": self.group.parameters,
            "tokenizer": self.run.config.data.tokenizer,
            "training_seed": self.run.config.training.seed,
            "data_seed": self.run.config.data.seed,
            "step": self.run.step,
            "num_steps": self.run.config.training.num_steps,
            "finished": self.run.finished,
            **{split: f._asdict() if f else None for split, f in found.items()},
        }


def make_page(lines: Sequence[Line], left_out: Sequence[reading.Run]) -> Page:
    """The page with the table; `left_out` are runs on other corpora, which it names."""
    columns = [*COLUMNS, "validation", "words used", "test", "words used"]
    rows = [line.cells() for line in lines]
    for (name, size), perplexity in TABLE_2.items():
        rows.append([f"{name} (paper)", size, "", "", "", "", "", perplexity, ""])
    description = DESCRIPTION
    if left_out:
        places = ", ".join(str(run.workdir) for run in left_out)
        description += f" Left out, not being on PG19 by data.name: {places}."
    data = {
        "runs": [line.data() for line in lines],
        "paper": [
            {"model": name, "size": size or None, "test": float(perplexity)}
            for (name, size), perplexity in TABLE_2.items()
        ],
        "left_out": [str(run.workdir) for run in left_out],
        "description": description,
    }
    return Page({"": TextTable(columns, rows, ("model", "tokenizer"))}, description, data)


def draw(lines: Sequence[Line], picture: "Figure") -> None:
    """Draws the test perplexity of all, and validation of the runs, on a logarithmic axis."""
    names = [f"{n} {line.group.name.partition(' ')[0]}" for n, line in enumerate(lines, 1)]
    names += [f"{model} {size}".rstrip() for model, size in TABLE_2]
    picture.set_size_inches(9, 0.3 * len(names) + 1.5)
    panel = picture.subplots()
    styles = {"validation": ("s", "none"), "test": ("o", None)}
    for index, line in enumerate(lines):
        color = FAMILIES[line.group.family]
        for split, (marker, face) in styles.items():
            if found := newest_word_perplexity(line.run, split):
                value = found.perplexity
                panel.plot(value, index, marker, color=color, markerfacecolor=face or color)
    for index, perplexity in enumerate(TABLE_2.values(), len(lines)):
        panel.plot(float(perplexity), index, "D", color="black", markerfacecolor="none")
    for marker, face, label in (
        ("s", "none", "validation"),
        ("o", "black", "test"),
        ("D", "none", "test, paper"),
    ):
        panel.plot([], [], marker, color="black", markerfacecolor=face, label=label)
    panel.set_xscale("log")
    label_logarithmic(panel.xaxis)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", alpha=0.3)
    panel.set_xlabel("word-level perplexity, runs numbered as in the table")
    panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def report(found: Sequence[reading.Run], folder: Path) -> None:
    """Prints the table and writes it, with the picture, into `folder`.

    Runs on other corpora than PG19 are left out, which the table says.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    on_pg19 = [run for run in found if run.config.data.corpus_name.casefold() == "pg19"]
    lines = [Line(group, run) for group in group_runs(on_pg19) for run in group.runs]
    page = make_page(lines, [run for run in found if run not in on_pg19])
    present(page, partial(draw, lines), folder, "table2")
