"""Laws of a written corpus: complete or not there, and the same bytes however it came about."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from block_recurrent.data import DataError, split_of
from block_recurrent.data.documents import SPLITS
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.lab.corpora import corpus_files
from block_recurrent.lab.corpora.corpus_writer import Progress, prepare
from block_recurrent.lab.corpora.entries import Content, Entry, Unusable


class Interrupted(Exception):
    """What the report of a caller raises to stop."""


def stopping(when: Callable[[Progress], object]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if when(progress):
            raise Interrupted

    return report


class Listed:
    """A source of given documents: id -> text, content, or reason to leave it out."""

    name = "listed"
    wanted = "other documents"
    decision = "splits: as listed"
    options: Mapping[str, object] = {"kind": "test"}

    def __init__(self, documents: Mapping[str, str | Content | Unusable], splits=None):
        self.documents, self.splits = documents, splits or {}
        self.left_out: dict[str, int] = {}

    def entries(self) -> Iterator[Entry]:
        self.left_out = {"not listed": 2}
        for document_id, content in self.documents.items():
            given = self.splits.get(document_id)
            among = (given,) if given else SPLITS
            yield Entry(document_id, self.reader(content), document_id, among)

    def reader(self, content: str | Content | Unusable) -> Callable[[], Content]:
        def read() -> Content:
            if isinstance(content, Unusable):
                raise content
            return Content("", content) if isinstance(content, str) else content

        return read


BOOKS: dict[str, str | Content | Unusable] = {
    f"book/{number}": f"text {number} " * 400 for number in range(40)
} | {"bad": Unusable("no LaTeX", {"figure": 3}), "blank": " \n"}
OPTIONS = {"validation_percent": 20, "test_percent": 20, "shard_bytes": 20_000}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*"))}


def write(path: Path, source=None, **options) -> dict:
    return prepare(Listed(BOOKS) if source is None else source, path, **OPTIONS | options)


def texts(path: Path) -> dict[str, dict[str, str]]:
    directory = TfdsDirectory(path)
    return {split: {d.id: d.text for d in directory.documents(split)} for split in directory.splits}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "corpus"
    write(path)
    return path


def test_every_document_is_in_the_split_that_its_id_decides(whole):
    expected: dict[str, dict] = {"test": {}, "validation": {}, "train": {}}
    for document_id, text in BOOKS.items():
        if document_id.startswith("book"):
            expected[split_of(document_id, 20, 20)][document_id] = text
    assert texts(whole) == expected
    assert not list(whole.parent.glob("*.partial*"))


def test_tensorflow_datasets_reads_the_directory(tmp_path):
    text = "é\0\u2028 and the end is NUL\0"
    content = Content("A\ttitle", text, "http://x", 1851)
    write(tmp_path / "c", Listed({"é/1": content, "b": "two"}), name="two_books", test_percent=0)
    info = tfds.builder_from_directory(str(tmp_path / "c"))
    records = {
        bytes(record["source"]).decode(): record
        for split in info.info.splits
        for record in info.as_data_source(split)
    }
    record = records["é/1"]
    assert record["book_text"].decode() == text
    assert (record["book_title"], record["book_link"]) == (b"A\ttitle", b"http://x")
    assert (record["book_id"], record["publication_date"]) == (0, 1851)
    assert (records["b"]["book_id"], info.info.name) == (1, "two_books")


def test_the_manifest_accounts_for_everything(whole):
    manifest = json.loads((whole / "manifest.json").read_text(encoding="ascii"))
    for document in manifest["documents"]:
        data = str(BOOKS[document["id"]]).encode()
        assert document["bytes"] == len(data)
        assert document["sha256"] == hashlib.sha256(data).hexdigest()
        assert f"-{document['split']}." in document["shard"]
    for shard in manifest["shards"]:
        data = (whole / shard["file"]).read_bytes()
        assert (shard["size"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    dropped = {(document["id"], document["reason"]) for document in manifest["dropped"]}
    assert dropped == {("bad", "no LaTeX"), ("blank", "no text")}
    assert len(manifest["documents"]) == 40
    assert sum(split["documents"] for split in manifest["splits"].values()) == 40
    assert (manifest["skipped"], manifest["left_out"]) == ({"figure": 3}, {"not listed": 2})
    assert manifest["options"]["shard_bytes"] == 20_000
    names = {path.name for path in whole.iterdir()}
    assert names == {shard["file"] for shard in manifest["shards"]} | {
        "manifest.json",
        "dataset_info.json",
        "features.json",
    }
    assert (
        TfdsDirectory(whole).fingerprint == hashlib.sha256(tree(whole)["manifest.json"]).hexdigest()
    )


def test_a_text_of_two_splits_stays_in_the_one_for_evaluation(tmp_path):
    splits = {
        "a": "train",
        "b": "validation",
        "c": "test",
        "d": "train",
        "e": "train",
        "f": "train",
    }
    splits |= {"g": "validation"}
    source = Listed({"a": "A", "b": "A", "c": "C", "d": "C", "e": "E", "f": "E", "g": "C"}, splits)
    manifest = write(tmp_path / "c", source)
    kept = {"test": {"c": "C"}, "validation": {"b": "A"}, "train": {"e": "E", "f": "E"}}
    assert texts(tmp_path / "c") == kept
    assert {d["id"]: d["split"] for d in manifest["dropped"]} == {
        "g": "validation",
        "a": "train",
        "d": "train",
    }
    assert {d["reason"] for d in manifest["dropped"]} == {
        "duplicate of a document in another split"
    }


def test_a_limit_holds_for_every_split_and_a_split_may_be_empty(tmp_path):
    manifest = write(tmp_path / "c", limit=2)
    assert [total["documents"] for total in manifest["splits"].values()] == [2, 2, 2]
    manifest = write(tmp_path / "d", validation_percent=0, test_percent=0)
    assert "validation" not in texts(tmp_path / "d")


class Counted(Listed):
    """Counts how often each document is read."""

    def __init__(self, documents=BOOKS, splits=None):
        super().__init__(documents, splits)
        self.reads: Counter[str] = Counter()

    def entries(self) -> Iterator[Entry]:
        for entry in super().entries():
            yield entry._replace(read=lambda entry=entry: self.read(entry))

    def read(self, entry: Entry) -> Content:
        self.reads[split_of(entry.id, 20, 20)] += 1
        return entry.read()


@pytest.mark.parametrize("stop_after", [0, 13, 41, 43, 55, 60, 80])
def test_stopped_and_continued_is_as_in_one_go(whole, tmp_path, stop_after):
    path, calls = tmp_path / "corpus", iter(range(1000))
    with pytest.raises(Interrupted):
        write(path, report=stopping(lambda progress: next(calls) >= stop_after))
    assert not path.exists()
    write(path)
    assert tree(path) == tree(whole)
    assert os.listdir(tmp_path) == ["corpus"]


def interrupted_in(split: str, path: Path, source=None) -> None:
    """Stops the writing of a corpus with the third document of a split."""
    calls = iter(range(1000))
    third = stopping(lambda progress: progress.split == split and next(calls) == 2)
    with pytest.raises(Interrupted):
        write(path, source, report=third)
    assert not path.exists() and path.with_name("c.partial").is_dir()


def test_a_finished_split_is_kept_and_an_unfinished_one_is_read_from_its_start(whole, tmp_path):
    source = Counted()
    interrupted_in("train", tmp_path / "c", source)
    before = Counter(source.reads)
    assert before["train"] == 3
    interrupted_in("train", tmp_path / "c", source)  # once more: splits that were kept stay kept
    progress = []
    write(tmp_path / "c", source, report=progress.append)
    assert source.reads == before | {"train": 6 + len(source.documents) - before.total() + 3}
    assert progress[-1].documents == progress[-1].total == 42
    assert tree(tmp_path / "c") == tree(whole)


def damaged_shard(partial: Path) -> None:
    shard = next((partial / "corpus").glob("*-test.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


DAMAGES = {
    "a flipped bit": damaged_shard,
    "a missing shard": lambda partial: next((partial / "corpus").glob("*-test.*")).unlink(),
    "a torn record": lambda partial: (partial / "test.json").write_text('{"name": "te'),
    "no record": lambda partial: (partial / "validation.json").unlink(),
    "a foreign record": lambda partial: (partial / "test.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_split_whose_digests_are_wrong_is_written_anew(whole, tmp_path, damage):
    interrupted_in("train", tmp_path / "c")
    damage(tmp_path / "c.partial")
    write(tmp_path / "c")
    assert tree(tmp_path / "c") == tree(whole)


def test_other_options_and_other_raw_data_begin_anew(tmp_path):
    for number, (source, options) in enumerate(
        [
            (Listed(BOOKS), {"limit": 3, "validation_percent": 10}),
            (Listed(BOOKS), {"name": "another"}),
            (Listed({**BOOKS, "new": "A"}, {"new": "test"}), {}),
            (Listed({**BOOKS, "new": str(BOOKS["book/1"])}, {"new": "validation"}), {}),
        ]
    ):
        interrupted_in("train", tmp_path / "c")
        write(tmp_path / "c", source, overwrite=True, **options)
        write(tmp_path / str(number), source, **options)
        assert tree(tmp_path / "c") == tree(tmp_path / str(number))
        shutil.rmtree(tmp_path / "c")


KILLS = """
import os, signal
from tests.lab.corpora import test_corpus_writer as t
from block_recurrent.lab.corpora import corpus_writer
from pathlib import Path

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_report(number):
    numbers = iter(range(1000))
    return lambda progress: die() if next(numbers) == number else None

def child(path, prepared=lambda: None, **options):
    pid = os.fork()
    if pid == 0:
        try:
            prepared()
            t.write(path, **options)
        except t.DataError as error:
            print(error)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def patch(module, name):
    return lambda: setattr(module, name, die)

root = Path({root!r})
"""


def test_killed_anywhere_and_continued_is_as_in_one_go(whole, tmp_path):
    """Also where array_record cannot write, which is never taken for success."""
    program = """
import resource

def small():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))

for number in (1, 43, 55, 70, 60):
    assert child(root / "corpus", report=at_report(number)) == -signal.SIGKILL
    assert not (root / "corpus").exists()
for name in ("write_whole", "describe", "write_manifest", "_move"):
    assert child(root / "corpus", patch(corpus_writer, name)) == -signal.SIGKILL
    assert not (root / "corpus").exists()
assert child(root / "corpus") == 0
assert child(root / "full", small) == 1
assert not (root / "full").exists()
assert child(root / "full") == 0
late = lambda: setattr(corpus_writer, "remove", lambda path: path.suffix == ".partial" and die())
assert child(root / "late", late) == -signal.SIGKILL
assert (root / "late").exists()
assert child(root / "late", overwrite=True) == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLS.format(root=str(tmp_path)) + program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "array_record-00000 cannot be written: " in done.stdout
    assert "File too large" in done.stdout
    for name in ("corpus", "full", "late"):
        assert tree(tmp_path / name) == tree(whole)
    assert sorted(os.listdir(tmp_path)) == ["corpus", "full", "late"]


def test_a_full_disk_is_an_error_and_not_the_end(whole, tmp_path, monkeypatch):
    path, real, calls = tmp_path / "corpus", os.fsync, iter(range(100))

    def full_later(handle):
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_later)
        with pytest.raises(DataError, match=r"corpus.partial.*No space left on device.*continues"):
            write(path)
    assert not path.exists()
    write(path)
    assert tree(path) == tree(whole)


def test_a_shard_that_does_not_read_as_written_is_no_success(tmp_path, monkeypatch):
    module = corpus_files.require("array_record.python.array_record_module", "data")

    class Losing(module.ArrayRecordWriter):
        def write(self, record: bytes) -> None:
            if record != b"b":
                super().write(record)

    losing = SimpleNamespace(ArrayRecordWriter=Losing, ArrayRecordReader=module.ArrayRecordReader)
    monkeypatch.setattr(corpus_files, "require", lambda *names: losing)
    with pytest.raises(DataError, match="s cannot be written: it does not read as it was written"):
        corpus_files.write_shard(tmp_path / "s", corpus_files.Split("train", {}), [b"a", b"b"])


def test_an_error_before_the_first_shard_leaves_nothing(tmp_path):
    source = Listed({"a": " ", "b": Unusable("no LaTeX")})
    with pytest.raises(DataError, match=r"no usable document.*no LaTeX.*no text|no text.*no LaTeX"):
        write(tmp_path / "c", source)
    with pytest.raises(DataError, match=r"no usable document \(dropped: none; left out: {'not li"):
        write(tmp_path / "c", Listed({}))
    assert os.listdir(tmp_path) == []


def test_one_directory_is_written_by_one_call_at_a_time(tmp_path):
    def second(progress):
        with pytest.raises(DataError, match=r"c.partial is being written by another process"):
            write(tmp_path / "c")

    write(tmp_path / "c", Listed({"a": "A"}), report=second)


def test_nothing_is_replaced_unasked_and_nothing_but_a_corpus_at_all(whole, tmp_path):
    path = tmp_path / "c"
    write(path, limit=1)
    with pytest.raises(DataError, match="c is a corpus already: .*--overwrite"):
        write(path)
    write(path, overwrite=True)
    assert tree(path) == tree(whole)
    for name in ("e", "e.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
        with pytest.raises(DataError, match=rf"{name} exists and is no .*--output"):
            write(tmp_path / "e", overwrite=True)
        (tmp_path / name / "precious").unlink()


def test_a_document_that_appears_after_the_listing_is_not_written(tmp_path):
    class Growing(Listed):
        def entries(self):
            yield from super().entries()
            self.documents = {**BOOKS, "late": "late"}

    write(tmp_path / "c", Growing(BOOKS))
    assert all("late" not in documents for documents in texts(tmp_path / "c").values())


def test_a_shared_id_and_an_id_that_cannot_be_written_are_errors(tmp_path):
    class Twice(Listed):
        def entries(self):
            yield from super().entries()
            yield Entry("book/3", lambda: Content("", "again"), "b")

    with pytest.raises(DataError, match="book/3 and b share the id 'book/3'"):
        write(tmp_path / "c", Twice(BOOKS))
    with pytest.raises(DataError, match="cannot be written as UTF-8"):
        write(tmp_path / "c", Listed({"\udcff": "x"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_percent": 101}, "validation_percent = 101 must be"),
        ({"test_percent": -1}, "test_percent = -1 must be"),
        ({"validation_percent": 60, "test_percent": 60}, "more than 100 together"),
        ({"limit": 0}, "limit = 0 must be at least 1"),
        ({"shard_bytes": 0}, "shard_bytes = 0 must be at least 1"),
        ({"name": "My-Corpus"}, "name = 'My-Corpus' must be of small letters"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "c", **options)
    assert os.listdir(tmp_path) == []


def test_damage_in_the_raw_data_is_an_error_and_what_was_finished_stays(whole, tmp_path):
    damaged = [d for d in BOOKS if d.startswith("book") and split_of(d, 20, 20) == "train"][-1]

    class Damaged(Listed):
        def reader(self, content):
            def read():
                raise DataError("raw, record 39 is damaged: remove it.")

            return read if content is BOOKS[damaged] else super().reader(content)

    with pytest.raises(DataError, match=r"record 39 is damaged: .*\. --skip_damaged"):
        write(tmp_path / "c", Damaged(BOOKS))
    assert os.listdir(tmp_path) == ["c.partial"]
    write(tmp_path / "c")
    assert tree(tmp_path / "c") == tree(whole)
    manifest = write(tmp_path / "skipped", Damaged(BOOKS), skip_damaged=True)
    assert {d["id"] for d in manifest["dropped"] if d["reason"] == "damaged"} == {damaged}
    expected = texts(whole)
    del expected["train"][damaged]
    assert texts(tmp_path / "skipped") == expected
    with pytest.raises(DataError, match=r"no usable .*damaged': 1.* first damage: raw, record 39"):
        write(tmp_path / "none", Damaged({"x": BOOKS[damaged]}), skip_damaged=True)


WORDS = [hashlib.sha256(str(number).encode()).hexdigest()[:6] for number in range(1000)]


def changed(number: int) -> str:
    """The words, of which so many differ, spread evenly."""
    places = {place * len(WORDS) // number for place in range(number)}
    return " ".join("?" if n in places else word for n, word in enumerate(WORDS))


NEAR: dict[str, str | Content | Unusable] = {
    "test/a": " ".join(WORDS),
    "test/b": "one",
    "validation/near": changed(5),
    "validation/far": changed(50),
    "train/near": changed(6),
    "train/spaces": "\n".join(WORDS),
    "train/far": changed(50).replace("?", "!"),
    "train/one": "1 2 3 4 5 6 7",
    "train/same": "1 2 3 4 5 6 7",
    "train/part": "1 2 3 4 5",
    "train/short": "one",
    "train/other": "two",
}
SPLIT_OF_NEAR = {document_id: document_id.partition("/")[0] for document_id in NEAR}


def test_copies_are_dropped_where_asked_and_held_out_documents_stay(tmp_path):
    manifest = write(tmp_path / "c", Listed(NEAR, SPLIT_OF_NEAR), deduplicate=True)
    assert {d["id"]: d["reason"] for d in manifest["dropped"]} == {
        "validation/near": "near copy of another document",
        "train/near": "near copy of another document",
        "train/spaces": "near copy of another document",
        "train/same": "copy of another document",
        "train/short": "duplicate of a document in another split",
    }
    manifest = write(tmp_path / "d", Listed(NEAR, SPLIT_OF_NEAR))
    assert [d["id"] for d in manifest["dropped"]] == ["train/short"]


def test_copies_of_splits_that_were_finished_before_a_stop_are_dropped(tmp_path):
    write(tmp_path / "whole", Listed(NEAR, SPLIT_OF_NEAR), deduplicate=True)
    for split in ("validation", "train"):
        with pytest.raises(Interrupted):
            report = stopping(lambda progress, split=split: progress.split == split)
            write(tmp_path / "c", Listed(NEAR, SPLIT_OF_NEAR), deduplicate=True, report=report)
    write(tmp_path / "c", Listed(NEAR, SPLIT_OF_NEAR), deduplicate=True)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")
