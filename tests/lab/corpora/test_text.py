"""Laws of text that is ready: what is a document, what it is called, and what is damaged."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from block_recurrent.data import DataError
from block_recurrent.lab.corpora.entries import Unusable, listed
from block_recurrent.lab.corpora.text import TextFiles

RECORDS = [
    {"id": f"r{number}", "title": f"T{number}", "text": f"é {number}"} for number in range(5)
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def parquet(file: Path, columns: dict, **options) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), file, **options)
    return file


def read(*paths: Path, **options) -> list[tuple]:
    """(id, title, text, split, repaired) of every document."""
    documents = []
    for entry in listed(TextFiles(paths, **options)):
        content = entry.read()
        documents.append((entry.id, content.title, content.text, entry.split, content.repaired))
    return documents


def expected(split: str | None = None) -> list[tuple]:
    return [(r["id"], r["title"], r["text"], split, False) for r in RECORDS]


def test_text_files_at_any_depth_are_called_by_their_path(tmp_path):
    write(
        tmp_path, {"b.txt": b"B\r\n", "x/y/a.txt": b"A", "x/a.md": b"NO", "x/train.txt": b"a\xffb"}
    )
    source = TextFiles([tmp_path])
    documents = [(entry.id, entry.read().text, entry.split) for entry in source.entries()]
    assert documents == [
        ("b.txt", "B\r\n", None),
        ("x/train.txt", "a\N{REPLACEMENT CHARACTER}b", None),
        ("x/y/a.txt", "A", None),
    ]
    assert [entry.read().repaired for entry in source.entries()] == [False, True, False]
    assert list(source.left_out.values()) == [1]


def test_a_name_that_is_not_utf8_becomes_one_that_is(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x", encoding="utf-8")
    assert read(tmp_path) == [("\\xff.txt", "\\xff", "x", None, False)]


def forms(folder: Path, name: str) -> list[Path]:
    """The same records in every form."""
    files = {
        "jsonl": LINES,
        "jsonl.gz": gzip.compress(LINES),
        "jsonl.zst": zstandard.compress(LINES[:100]) + zstandard.compress(LINES[100:]),
    }
    write(folder, {f"{name}.{ending}": content for ending, content in files.items()})
    columns = {field: [record[field] for record in RECORDS] for field in RECORDS[0]}
    table = parquet(folder / f"{name}.parquet", columns, row_group_size=2)
    return [*(folder / f"{name}.{ending}" for ending in files), table]


def test_records_are_the_same_in_every_form(tmp_path):
    for file in forms(tmp_path, "books"):
        assert read(file) == expected(), file


@pytest.mark.parametrize("name", ["train", "validation", "test", "test-00000-of-00002"])
def test_the_name_of_a_file_of_records_tells_the_split(tmp_path, name):
    split = name.partition("-")[0]
    for number, file in enumerate(forms(tmp_path / "all", name)):
        folder = tmp_path / f"one{number}"
        folder.mkdir()
        file.rename(folder / file.name)
        assert read(folder) == read(folder / file.name) == expected(split)


def test_columns_may_be_called_otherwise_and_ids_be_numbers(tmp_path):
    write(tmp_path, {"a.jsonl": b'{"n": 7, "body": "x", "head": null, "text": "not this"}'})
    parquet(tmp_path / "b.parquet", {"n": [8], "body": [b"a\xff"], "head": ["H"], "more": [1]})
    names = {"id_column": "n", "text_column": "body", "title_column": "head"}
    assert read(tmp_path, **names) == [
        ("7", "", "x", None, False),
        ("8", "H", "a\N{REPLACEMENT CHARACTER}", None, True),
    ]
    assert TextFiles([tmp_path], **names).options == names


def test_what_is_no_text_in_utf8_is_replaced_and_counted(tmp_path):
    write(tmp_path, {"a.jsonl": b'{"id": "a", "text": "x\\ud800y"}\n{"id": "b", "text": "\xff"}'})
    text = pa.array([b"ok", b"a\xff"]).view(pa.string())
    parquet(tmp_path / "b.parquet", {"id": ["c", "d"], "text": text})
    texts = {document[0]: (document[2], document[4]) for document in read(tmp_path)}
    bad = "\N{REPLACEMENT CHARACTER}"
    assert texts == {
        "a": (f"x{bad}y", True),
        "b": (bad, True),
        "c": ("ok", False),
        "d": (f"a{bad}", True),
    }


def test_damaged_files_are_named(tmp_path):
    random = os.urandom(200_000).hex().encode()
    line = b'{"id": "a", "text": "' + random + b'"}\n'
    for ending, content in [
        ("jsonl.gz", gzip.compress(line)[:-100]),
        ("jsonl.gz", b"no gzip"),
        ("jsonl.zst", zstandard.compress(line)[:-100]),
        ("jsonl.zst", zstandard.compress(line)[:100]),
        ("jsonl.zst", b"no zstd"),
        ("parquet", b"no parquet"),
    ]:
        file = write(tmp_path, {f"a.{ending}": content}) / f"a.{ending}"
        with pytest.raises(DataError, match=f"{file} cannot be read.*again"):
            read(file)


def test_a_damaged_page_of_a_table_is_named_by_its_row(tmp_path):
    columns = {
        "id": [str(n) for n in range(300)],
        "text": [os.urandom(500).hex() for _ in range(300)],
    }
    file = parquet(tmp_path / "a.parquet", columns, row_group_size=100, compression="zstd")
    data = bytearray(file.read_bytes())
    for position in range(100_000, 100_400):
        data[position] ^= 0x55
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet cannot be read after row \d+"):
        read(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"id": "a", "text": "x"}\n{"id": "b"', "line 2: not JSON"),
        (b"[1]", "line 1: a list; write an object"),
        (b'\n{"id": "a", "body": "x"}', "line 2: no 'text', only 'id', 'body': --text_column=NAME"),
        (b'{"text": "a"}', "line 1: no 'id', only 'text': --id_column=NAME"),
        (b'{"id": "a", "text": null}', "line 1: 'text' is None"),
        (
            b'{"id": 1, "text": "x"}\n{"id": "1", "text": "y"}',
            "line 1 and .*line 2 share the id '1'",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, lines, message):
    write(tmp_path, {"a.jsonl": lines})
    with pytest.raises(DataError, match=f"a.jsonl, {message}"):
        read(tmp_path)


def test_a_table_without_the_columns_is_named_by_its_row(tmp_path):
    file = parquet(tmp_path / "a.parquet", {"x": [1], "y": ["b"]})
    with pytest.raises(DataError, match=r"a.parquet, row 1: no 'id', only 'x': --id_column=NAME"):
        read(file)


def test_an_id_of_two_directories_is_an_error(tmp_path):
    write(tmp_path, {"a/x.txt": b"1", "b/x.txt": b"2"})
    with pytest.raises(DataError, match=r"a/x.txt and .*b/x.txt share the id 'x.txt'"):
        read(tmp_path / "a", tmp_path / "b")


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    write(tmp_path, {"a.md": b""})
    for name, message in [
        ("none", "none does not exist"),
        ("a.md", "a.md must end in one of .txt"),
    ]:
        with pytest.raises(DataError, match=message):
            TextFiles([tmp_path / name])


def test_a_file_that_goes_away_is_left_out_by_reason(tmp_path):
    write(tmp_path, {"a.txt": b"x"})
    (entry,) = TextFiles([tmp_path]).entries()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(Unusable, match=r"unreadable \(No such file"):
        entry.read()
