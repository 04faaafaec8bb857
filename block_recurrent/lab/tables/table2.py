"""Word-level perplexity on PG19 from work directories, beside the paper's Table 2."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from block_recurrent.lab.tables.layout import (
    MISSING,
    Page,
    TextTable,
    color_of,
    label_logarithmic,
    label_rows,
    publish,
    short_count,
)
from block_recurrent.lab.tables.paper import PG19_SPLITS, TABLE_2
from block_recurrent.lab.tables.seed_groups import SeedGroup, group_runs
from block_recurrent.runs.reading import Run
from block_recurrent.training.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A larger difference to the published count of words means that some book is not whole.
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


def newest_word_perplexity(run: Run, split: str) -> WordPerplexity | None:
    """The perplexity of a run's last evaluation on a split, by `evaluate.py` or in training."""
    scored = run.scored.get(split)
    last = run.points[-1] if run.points and split == "validation" else None
    if scored and (last is None or scored.step >= last.step):
        return word_perplexity(split, scored.step, scored.evaluation, scored.documents)
    return word_perplexity(split, last.step, last.evaluation, None) if last else None


class Line(NamedTuple):
    """A run in the table.

    Attributes:
      group: the run's group, which names it.
      run: the run.
      found: the newest perplexity on each split of PG19, or None.
    """

    group: SeedGroup
    run: Run
    found: dict[str, WordPerplexity | None]

    def cells(self) -> list[str]:
        """The run's cells, one for each column."""
        training_seed, data_seed = self.run.seeds
        total = self.run.config.training.num_steps
        steps = dict.fromkeys(f.step for f in self.found.values() if f) or {self.run.step: None}
        done = ", ".join(f"{step:,}" for step in steps)
        cells = [
            self.group.name,
            short_count(self.group.parameters),
            self.run.config.data.tokenizer,
            f"{training_seed}, {data_seed}",
            done if all(step >= total for step in steps) else f"{done} of {total:,}",
        ]
        for found in self.found.values():
            if found is None:
                cells += [MISSING, MISSING]
            else:
                kind = "published" if found.published else "counted"
                cells += [f"{found.perplexity:,.2f}", f"{found.words:,} {kind}"]
        return cells

    def data(self) -> dict[str, Any]:
        """The run and its perplexities as JSON values."""
        config = self.run.config
        return {
            "name": self.group.name,
            "workdir": str(self.run.workdir),
            "parameters_without_embedding": self.group.parameters,
            "tokenizer": config.data.tokenizer,
            "training_seed": config.training.seed,
            "data_seed": config.data.seed,
            "step": self.run.step,
            "num_steps": config.training.num_steps,
            "finished": self.run.finished,
            **self.found,
        }


def make_page(runs: Sequence[Run]) -> Page:
    """The page with the table; it names the runs on other corpora, which are left out.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    on_pg19 = [run for run in runs if run.config.data.corpus_name.casefold() == "pg19"]
    lines = [
        Line(group, run, {split: newest_word_perplexity(run, split) for split in PG19_SPLITS})
        for group in group_runs(on_pg19)
        for run in group.runs
    ]
    left_out = [str(run.workdir) for run in runs if run not in on_pg19]
    columns = [*COLUMNS, "validation", "words used", "test", "words used"]
    rows = [line.cells() for line in lines]
    for (name, size), perplexity in TABLE_2.items():
        rows.append([f"{name} (paper)", size, "", "", "", "", "", perplexity, ""])
    description = DESCRIPTION
    if left_out:
        description += f" Left out, not being on PG19 by data.name: {', '.join(left_out)}."
    data = {
        "runs": [line.data() for line in lines],
        "paper": [
            {"model": name, "size": size or None, "test": float(perplexity)}
            for (name, size), perplexity in TABLE_2.items()
        ],
        "left_out": left_out,
        "description": description,
    }
    table = TextTable(columns, rows, ("model", "tokenizer"))
    return Page("table2", {"": table}, description, data, {"table2": partial(draw, lines)})


def draw(lines: Sequence[Line], picture: "Figure") -> None:
    """Draws the test perplexity of all, and validation of the runs, on a logarithmic axis."""
    names = [f"{n} {line.group.name.partition(' ')[0]}" for n, line in enumerate(lines, 1)]
    names += [f"{model} {size}".rstrip() for model, size in TABLE_2]
    picture.set_size_inches(9, 0.3 * len(names) + 1.5)
    panel = picture.subplots()
    for index, line in enumerate(lines):
        color = color_of(line.group.name)
        for split, shape, face in (("validation", "s", "none"), ("test", "o", color)):
            if found := line.found[split]:
                panel.plot(found.perplexity, index, shape, color=color, markerfacecolor=face)
    for index, perplexity in enumerate(TABLE_2.values(), len(lines)):
        panel.plot(float(perplexity), index, "D", color="black", markerfacecolor="none")
    for shape, face, label in (
        ("s", "none", "validation"),
        ("o", "black", "test"),
        ("D", "none", "test, paper"),
    ):
        panel.plot([], [], shape, color="black", markerfacecolor=face, label=label)
    panel.set_xscale("log")
    label_logarithmic(panel.xaxis)
    label_rows(panel, names, "word-level perplexity, runs numbered as in the table")
    panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def report(found: Sequence[Run], folder: Path) -> None:
    """Prints the table of runs and writes it, with the picture, into `folder`.

    Raises:
      SelectionError: what `group_runs` raises.
    """
    publish(make_page(found), folder)
