"""What a source of raw data gives: entries, one a document, which are read later, one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn, Protocol

from block_recurrent.data.documents import SPLITS, DataError, replace_lone_surrogates


class Unusable(Exception):
    """A document that is left out of the corpus.

    Attributes:
      reason: why; documents are counted by it.
      skipped: parts of the document that were left out before, as reason -> number.
    """

    def __init__(self, reason: str, skipped: Mapping[str, int] | None = None):
        super().__init__(reason)
        self.reason = reason
        self.skipped = dict(skipped or {})


class Content(NamedTuple):
    """One document as read from its source.

    Attributes:
      title: a title for people; may be empty.
      text: the text, which UTF-8 can encode.
      link: the address where it was published; may be empty.
      year: the year of publication, 0 if unknown.
      skipped: parts of the document that were left out, as reason -> number of files.
      repaired: whether some of its bytes were not valid in the expected encoding.
      number: the number that the document has where it was published; None if it has none.
    """

    title: str
    text: str
    link: str = ""
    year: int = 0
    skipped: Mapping[str, int] = {}
    repaired: bool = False
    number: int | None = None


class Entry(NamedTuple):
    """A document that can be read.

    Attributes:
      id: the document's id, always the same, since it decides the split.
      read: returns the content. Raises Unusable to leave the document out, and DataError, which
        names file and record, if the raw data is damaged.
      where: the file or folder, and the record in it.
      among: the splits that it may belong to; of several, a hash of its id chooses one.
      damage: what `read` raises, if that was found while listing; None otherwise.
    """

    id: str
    read: Callable[[], Content]
    where: str
    among: Sequence[str] = SPLITS
    damage: DataError | None = None


def damaged(name: str, damage: DataError, among: Sequence[str] = SPLITS) -> Entry:
    """Returns the entry of a damaged file, which follows the documents before the damage.

    It makes the file count among the documents that are dropped. `name` is its id.
    """

    def read() -> NoReturn:
        raise damage

    return Entry(name, read, name, among, damage)


class Source(Protocol):
    """Raw data of one kind.

    Attributes:
      name: the name of its corpus, for instance "pg19".
      wanted: what it looks for, for the message if there is nothing of that kind.
      options: all that decides what is read, as JSON values, without paths of this machine.
      left_out: what was found and not listed, as reason -> number; complete after `entries`.
      decision: a line for people: how the splits were decided.
    """

    name: str
    wanted: str
    decision: str

    @property
    def options(self) -> Mapping[str, object]: ...

    @property
    def left_out(self) -> Mapping[str, int]: ...

    def entries(self) -> Iterator[Entry]:
        """Lists the documents in an order that depends on the raw data alone.

        It may be called several times. A damaged file ends with an entry that is `damaged`, and
        the next file follows.

        Raises:
          DataError: the raw data cannot be listed.
        """
        ...


def listed(source: Source, *, skip_damaged: bool = False) -> Iterator[Entry]:
    """Yields the entries of a source.

    Raises:
      DataError: two have the same id, UTF-8 cannot encode one, or a file is damaged.
    """
    where_is: dict[str, str] = {}
    for entry in source.entries():
        if entry.damage and not skip_damaged:
            raise with_advice(entry.damage)
        if entry.id in where_is:
            raise DataError(
                f"{where_is[entry.id]} and {entry.where} share the id {entry.id!r}: rename or "
                "remove one."
            )
        if replace_lone_surrogates(entry.id)[1]:
            raise DataError(f"{entry.where}: the id {entry.id!r} cannot be written as UTF-8.")
        where_is[entry.id] = entry.where
        yield entry


def with_advice(damage: DataError) -> DataError:
    """Returns the error of damaged data with the way to go on without that data."""
    return DataError(f"{damage} --skip_damaged leaves out what is damaged.")
