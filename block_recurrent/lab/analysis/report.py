"""Where the gain of the recurrence comes from: printed, and written with data and pictures."""

from collections.abc import Sequence
from pathlib import Path

from block_recurrent.lab.analysis.documents import take_documents
from block_recurrent.lab.analysis.pictures import PICTURES
from block_recurrent.lab.analysis.runs import find_reference, load_corpus, load_subjects
from block_recurrent.lab.analysis.study import Options, Report, Study, study
from block_recurrent.lab.analysis.tables import make_page, top_table
from block_recurrent.lab.tables.layout import (
    Page,
    can_draw,
    json_text,
    picture_lines,
    save_picture,
    show,
)
from block_recurrent.runs.reading import Run

NAME = "analysis"


def markdown(study: Study, page: Page, pictures: bool) -> str:
    """The page as Markdown, with the words that gain most."""
    tables = dict(page.tables)
    for index in study.others():
        name = study.subjects[index].name
        tables[f"The words that gain most with {name}"] = top_table(study, index)
    text = page._replace(tables=tables).markdown(None)
    shown = [name for name in PICTURES if pictures and PICTURES[name].shows(study)]
    lines = [line for name in shown for line in picture_lines(name, f"{name}.png")]
    return "\n\n".join([text.rstrip(), *lines]) + "\n"


def report(
    runs: Sequence[Run],
    folder: Path,
    *,
    against: Path | None,
    split: str,
    text: Path | None,
    documents: int,
    tokens: int,
    options: Options,
    progress: Report = lambda text: None,
) -> None:
    """Analyses runs, prints the tables and writes them, with data and pictures, into `folder`.

    Args:
      runs: at least one.
      folder: where the files go.
      against: work directory of the reference, among the runs; None for the first run without
        recurrent layers.
      split: of the runs' corpus.
      text: a file to read in place of the corpus.
      documents: how many are read, at most.
      tokens: of each document, the first so many.
      options: how much is computed.
      progress: takes the progress, for people.

    Raises:
      CheckpointError, DataError, SelectionError: what `load_subjects` and `load_corpus` raise.
    """
    corpus, tokenizer = load_corpus(runs, split, text, progress)
    corpus = take_documents(corpus, tokenizer, documents, tokens)
    reference = find_reference(runs, against)
    found = study(load_subjects(runs), reference, corpus, tokenizer, options, progress)
    page = make_page(found)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = can_draw()
    written = [folder / f"{NAME}.md", folder / f"{NAME}.json"]
    written[0].write_text(markdown(found, page, drawn), encoding="utf-8")
    written[1].write_text(json_text(page.data), encoding="utf-8")
    for name, picture in PICTURES.items():
        if drawn and picture.shows(found):
            written.append(folder / f"{name}.png")
            save_picture(lambda figure, draw=picture.draw: draw(found, figure), written[-1])
    show(page.text(), written)
