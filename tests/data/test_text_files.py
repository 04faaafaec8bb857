"""Laws of text that is ready: what is a document, what it is called, and what is damaged."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from block_recurrent import gin_files
from block_recurrent.data import DataError, json_lines
from block_recurrent.data.corpus import load_corpus
from block_recurrent.data.records import Columns
from block_recurrent.data.text_files import Reading, TextFiles, joined

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


def read(*paths: Path, **reading) -> list[tuple]:
    """(id, title, text, repaired) of every document."""
    found = TextFiles(paths, Reading(**reading))
    pairs = ((file, record) for file in found.files for record in found.records(file))
    return [(r.id, r.title, r.text, r.repaired) for _, r in joined(pairs)]


EXPECTED = [(record["id"], record["title"], record["text"], False) for record in RECORDS]


def test_text_files_at_any_depth_are_called_by_their_path(tmp_path):
    write(tmp_path, {"b.txt": b"B\r\n", "x/y/a.txt": b"A", "x/a.md": b"NO", "x/c.txt": b"a\xffb"})
    assert read(tmp_path) == [
        ("b.txt", "b", "B\r\n", False),
        ("x/c.txt", "c", "a\N{REPLACEMENT CHARACTER}b", True),
        ("x/y/a.txt", "a", "A", False),
    ]
    assert list(TextFiles([tmp_path]).left_out.values()) == [1]


def test_a_name_that_is_not_utf8_becomes_one_that_is(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x", encoding="utf-8")
    assert read(tmp_path) == [("\\xff.txt", "\\xff", "x", False)]


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
        assert read(file) == EXPECTED, file


def test_columns_may_be_called_otherwise_and_ids_be_numbers(tmp_path):
    write(tmp_path, {"a.jsonl": b'{"n": 7, "body": "x", "head": null, "text": "not this"}'})
    parquet(tmp_path / "b.parquet", {"n": [8], "body": [b"a\xff"], "head": ["H"], "more": [1]})
    assert read(tmp_path, columns=Columns("n", "body", "head")) == [
        ("7", "", "x", False),
        ("8", "H", "a\N{REPLACEMENT CHARACTER}", True),
    ]
    assert [one[0] for one in read(tmp_path, columns=Columns("n,head", "body"))] == [
        "a.jsonl:1",
        "8/H",
    ]


def test_what_is_no_text_in_utf8_is_replaced_and_counted(tmp_path):
    write(tmp_path, {"a.jsonl": b'{"id": "a", "text": "x\\ud800y"}\n{"id": "b", "text": "\xff"}'})
    text = pa.array([b"ok", b"a\xff"]).view(pa.string())
    parquet(tmp_path / "b.parquet", {"id": ["c", "d"], "text": text})
    texts = {document[0]: (document[2], document[3]) for document in read(tmp_path)}
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
        (
            b'\n{"id": "a", "body": 3}',
            r"line 2: no 'text', only 'id' \(str\), 'body' \(int\): --text_column=NAME",
        ),
        (b'{"id": "a", "text": ["b"]}', r"line 1: 'text' is \['b'\]; write it as a string"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, lines, message):
    write(tmp_path, {"a.jsonl": lines})
    with pytest.raises(DataError, match=f"a.jsonl, {message}"):
        read(tmp_path)


def test_a_table_without_a_text_is_named_with_all_its_columns(tmp_path):
    file = parquet(tmp_path / "a.parquet", {"x": [1], "y": ["b"]})
    with pytest.raises(
        DataError, match=r"a.parquet, row 1: no 'text', only 'x' \(int64\), 'y' \(string\): --text"
    ):
        read(file)


def test_two_columns_of_one_name_are_an_error(tmp_path):
    """Only one of them could be the text."""
    table = pa.table([["a"], ["b"], ["c"]], names=["id", "text", "text"])
    write(tmp_path, {"a.csv": b"id,text,text\na,b,c\n"})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    for name, kind in (("c.arrow", pa.ipc.new_file), ("d.arrow", pa.ipc.new_stream)):
        with kind(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for file in tmp_path.iterdir():
        with pytest.raises(DataError, match=rf"{file.name}: 2 columns are called 'text'; rename"):
            read(file)
    nameless = pa.table([["a"], ["b"]], names=["", ""])
    pyarrow.parquet.write_table(nameless, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="2 columns are called ''"):
        read(tmp_path / "b.parquet")


def test_ids_are_told_apart_by_file_where_records_have_none(tmp_path):
    lines = b'{"text": "x"}\n\n{"id": null, "text": "y"}\n{"meta": {"id": 5}, "text": "z"}\n'
    write(tmp_path, {"a.ndjson": lines, "b/c.json": b'[{"text": "l"}, {"id": "m", "text": null}]'})
    assert [(one[0], one[2]) for one in read(tmp_path)] == [
        ("a.ndjson:1", "x"),
        ("a.ndjson:2", "y"),
        ("5", "z"),
        ("b/c.json:1", "l"),
        ("m", None),
    ]


def test_a_table_of_commas_or_tabs_has_its_columns_in_the_first_line(tmp_path):
    text = b'\xef\xbb\xbfid,text\r\na,"x, ""y""\nz"\r\nb,\xff\r\n'
    write(tmp_path, {"a.csv.gz": gzip.compress(text), "b.tsv": b"text\tid\nu\tc\n"})
    bad = "\N{REPLACEMENT CHARACTER}"
    expected = [("a", "", 'x, "y"\nz', False), ("b", "", bad, True), ("c", "", "u", False)]
    assert read(tmp_path) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_folder_that_datasets_has_saved_is_read(stream, tmp_path):
    table = pa.table({name: [record[name] for record in RECORDS] for name in RECORDS[0]})
    (tmp_path / "train").mkdir()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    file = str(tmp_path / "train/data-00000-of-00001.arrow")
    with pa.OSFile(file, "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)
    names = ("dataset_dict.json", "train/state.json", "train/dataset_info.json")
    write(tmp_path, dict.fromkeys(names, b"{}"))
    assert read(tmp_path) == EXPECTED and not TextFiles([tmp_path]).left_out


def test_published_layouts_are_known_by_their_columns(tmp_path):
    pg19 = {"short_book_title": ["T"], "publication_date": [1900], "url": ["u"], "text": ["x"]}
    parquet(tmp_path / "a.parquet", pg19)
    assert read(tmp_path) == [("u", "T", "x", False)]


def test_files_of_a_repository_are_one_document_in_the_order_of_their_paths(tmp_path):
    rows = [("r", "b.py", "2"), ("s", "a.py", "s"), ("r", "a.py", "1")]
    for number, part in enumerate((rows[:1], rows[1:])):
        names, paths, codes = zip(*part, strict=True)
        columns = {
            "repo_name": names,
            "path": paths,
            "code": codes,
            "language": ["Python"] * len(part),
        }
        parquet(tmp_path / f"train-{number}.parquet", columns)
    assert read(tmp_path) == [("r", "", "1\n2", False), ("s", "", "s", False)]
    single = read(tmp_path, columns=Columns("repo_name,path"))
    assert [(one[0], one[2]) for one in single] == [
        ("r/b.py", "2"),
        ("s/a.py", "s"),
        ("r/a.py", "1"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_file_is_read(encoding, tmp_path):
    write(tmp_path, {"a.txt": "é\n𝄞".encode(encoding)})
    assert read(tmp_path) == [("a.txt", "a", "é\n𝄞", False)]


def test_a_byte_order_mark_of_records_is_left_out_and_utf16_refused(tmp_path):
    file = write(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + LINES}) / "a.jsonl"
    assert read(file) == EXPECTED
    file.write_bytes(LINES.decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.jsonl is UTF-16: convert it to UTF-8"):
        read(file)


def test_utf16_without_a_mark_is_refused(tmp_path):
    write(tmp_path, {"a.txt": "plain words".encode("utf-16-le")})
    with pytest.raises(DataError, match=r"a\.txt: every second byte is 0.*convert it to UTF-8"):
        read(tmp_path)


def test_an_id_that_utf8_cannot_encode_becomes_one_that_it_can(tmp_path):
    write(tmp_path, {"a.jsonl": b'{"id": "u\\ud800x", "text": "hello"}\n'})
    assert read(tmp_path)[0][0] == "u\N{REPLACEMENT CHARACTER}x"


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    write(tmp_path, {"a.md": b""})
    for name, message in [
        ("none", "none does not exist"),
        ("a.md", "a.md must end in one of .txt"),
    ]:
        with pytest.raises(DataError, match=message):
            TextFiles([tmp_path / name])


def test_the_bytes_of_a_file_are_cut_into_shares_and_none_is_lost(tmp_path):
    data = ("0123456789" * 9 + "aé" + "x" * 7).encode()  # 100 bytes, é are the 92nd and 93rd
    (tmp_path / "enwik8").write_bytes(data)
    found = TextFiles([tmp_path / "enwik8"], Reading(split_bytes=(92, 0, 7)))
    assert [(file.name, file.among) for file in found.files] == [
        ("enwik8:train", ("train",)),
        ("enwik8:test", ("test",)),
    ]
    train, test = (record for file in found.files for record in found.records(file))
    assert (len(train.text.encode()), train.text + test.text) == (93, data.decode())
    for split, size in (("train", 91), ("validation", 5), ("test", 4)):
        corpus = load_corpus(
            "text", split, path=tmp_path / "enwik8", reading=Reading(split_bytes=(91, 5, 4))
        )
        assert [len(document.text.encode()) for document in corpus.documents] == [size], split


def test_a_line_that_matches_begins_a_document(tmp_path):
    articles = "\n = One = \n\n = = Part = = \n a\n", " = Two = \n b = c = d\n"
    write(tmp_path, {"wiki.train.tokens": "".join(articles).encode(), "wiki.valid.raw": b" = V = "})
    expression = gin_files.load(["sizes/tiny.gin", "datasets/wikitext103.gin"], needs_data=False)
    reading = Reading(document_start=expression.data.document_start)
    train = load_corpus("text", "train", path=tmp_path, reading=reading)
    assert [tuple(document) for document in train.documents] == [
        ("wiki.train.tokens:1", "One", articles[0]),
        ("wiki.train.tokens:2", "Two", articles[1]),
    ]
    assert len(load_corpus("text", "validation", path=tmp_path, reading=reading).documents) == 1
    before = read(tmp_path / "wiki.train.tokens", document_start="^ = T")
    assert [document[2] for document in before] == list(articles)
    inside = read(tmp_path / "wiki.train.tokens", document_start="(One|Two) =")
    assert [document[2] for document in inside] == list(articles)


@pytest.mark.parametrize(
    ("reading", "sentence"),
    [
        (Reading(split_bytes=(90, 10)), "split_bytes = .*shares of train, validation and test"),
        (Reading(split_bytes=(0, 0, 0)), "split_bytes"),
        (Reading(document_start="("), "document_start = .* is no regular expression"),
        (Reading(document_start="^never"), "a.txt: document_start = .* matches nowhere"),
        (Reading(split_bytes=(90, 5, 5)), "b.jsonl holds records, whose bytes are not split"),
    ],
)
def test_what_cannot_be_cut_is_an_error(tmp_path, reading, sentence):
    write(tmp_path, {"a.txt": b"text", "b.jsonl": LINES})
    with pytest.raises(DataError, match=sentence):
        load_corpus("text", "train", path=tmp_path, reading=reading)


PACKERS = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv"])
def test_a_bomb_is_refused_within_bounds_and_a_plain_file_of_that_size_is_read(
    kind, packed, tmp_path, monkeypatch
):
    monkeypatch.setattr(json_lines, "UNPACKED_BYTES", 2**20)
    beginning = {".json": b"[", ".csv": b"id,text\n", ".jsonl": b"{", ".txt": b""}[kind]
    bomb = PACKERS[packed](beginning + bytes(2**27))
    path = tmp_path / f"bomb{kind}{packed}"
    path.write_bytes(bomb)
    limit = max(2**20, 64 * len(bomb))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"bomb.*unpacks to more than {limit:,} bytes"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 3 * limit + 2**26
    tracemalloc.stop()
    plain = {".json": '[{"text": "%s"}]', ".csv": "id,text\na,%s\n", ".jsonl": '{"text": "%s"}'}
    text = "a" * 2**21
    (tmp_path / f"plain{kind}").write_text(plain.get(kind, "%s") % text)
    assert [document[2] for document in read(tmp_path / f"plain{kind}")] == [text]


@pytest.mark.parametrize("lie", [2**31 - 1, -1])
def test_lengths_that_an_arrow_file_states_are_checked(lie, tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"text": ["abcde"] * 4})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(number.to_bytes(4, "little") for number in (10, 15, 20))
    content = path.read_bytes()
    assert content.count(offsets) == 1
    false = offsets[:4] + lie.to_bytes(4, "little", signed=True) + offsets[8:]
    path.write_bytes(content.replace(offsets, false))
    with pytest.raises(DataError, match=r"a\.arrow cannot be read after row 0"):
        read(path)
