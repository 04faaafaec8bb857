"""Documents that are text already: what training reads directly, too."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from block_recurrent.data.documents import DataError
from block_recurrent.data.huggingface import HubDataset
from block_recurrent.data.text_files import (
    AS_PUBLISHED,
    Reading,
    Record,
    TextFile,
    TextFiles,
    joined,
)
from block_recurrent.lab.corpora.entries import Content, Entry, Unusable, damaged


class Texts:
    """One document for every text file and for every record of the other files, or of a data set.

    Args:
      found: the paths of directories and files; or a data set that was opened.
      reading: how files are read, or the data set was.

    Raises:
      DataError: see `TextFiles`.
    """

    wanted = "text that is not only white space"

    def __init__(
        self,
        found: Sequence[str | os.PathLike[str]] | HubDataset,
        reading: Reading = AS_PUBLISHED,
    ):
        is_dataset = isinstance(found, HubDataset)
        self.name = "huggingface" if is_dataset else "text"
        self._found = found if is_dataset else TextFiles(found, reading)
        self.left_out = self._found.left_out
        self.decision = self._found.decision
        named = {f"{field}_column": name for field, name in reading.columns._asdict().items()}
        others = {name: value for name, value in reading._asdict().items() if name != "columns"}
        self.options: Mapping[str, object] = named | others

    def entries(self) -> Iterator[Entry]:
        """Yields text files, then records, in the order of the paths; in a directory by name.

        Of a damaged file it yields the records before the damage.
        """
        for file in filter(lambda file: file.is_document, self._found.files):
            yield Entry(file.name, partial(self._read, file), str(file.path), file.among)
        damages: list[Entry] = []
        for file, record in joined(self._records(damages)):
            yield from damages
            damages.clear()
            yield Entry(record.id, partial(_content, record), record.where, file.among)
        yield from damages

    def _records(self, damages: list[Entry]) -> Iterator[tuple[TextFile, Record]]:
        """Yields the records of all files; adds an entry for each damaged file to `damages`."""
        for file in (file for file in self._found.files if not file.is_document):
            try:
                for record in self._found.records(file):
                    yield file, record
            except DataError as error:
                damages.append(damaged(file.name, error, file.among))

    def _read(self, file: TextFile) -> Content:
        try:
            return _content(*self._found.records(file))
        except OSError as error:
            raise Unusable(f"unreadable ({error.strerror})") from error


def _content(record: Record) -> Content:
    if record.text is None:
        raise Unusable("no text")
    return Content(record.title, record.text, repaired=record.repaired)
