"""Laws of the sources: what is a document, and what happens to bad input."""

import gzip
import json
from pathlib import Path

import pytest

from block_recurrent.data import DataError, load_corpus


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def record(**values) -> str:
    return json.dumps({"id": "a", "title": "A", "text": "text"} | values) + "\n"


def texts(source: str, path: Path, split: str = "train", **options) -> dict[str, str]:
    options = {"validation_percent": 0} | options
    return {d.id: d.text for d in load_corpus(source, split, path=path, **options).documents}


@pytest.mark.parametrize("source", ["stdlib", "site_packages"])
def test_packages_are_documents_without_their_tests(tmp_path, source):
    write(
        tmp_path,
        {
            "module.py": "m",
            "package/z.py": "z",
            "package/b.py": "b",
            "package/a/deep.py": "deep",
            "package/a/tests/test_deep.py": "TEST",
            "package/data.txt": "DATA",
            "namespace/inner/x.py": "x",
            "test/test_all.py": "TEST",
            "tests/test_all.py": "TEST",
            "package/idle_test/test_idle.py": "TEST",
            "site-packages/other/o.py": "OTHER",
            "__pycache__/module.py": "CACHE",
            "config-3.11-linux/c.py": "CONFIG",
            "empty_folder/readme.md": "README",
        },
    )
    expected = {"module": "m", "namespace": "x", "package": "b\nz\ndeep"}
    assert texts(source, tmp_path) == expected


def test_text_files_at_any_depth_are_documents(tmp_path):
    write(tmp_path, {"b.txt": "B\r\n", "x/y/a.txt": "A", "x/a.md": "NO"})
    assert texts("text", tmp_path) == {"b.txt": "B\r\n", "x/y/a.txt": "A"}


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    write(tmp_path, {"bad.txt": b"a\xffb", "good.txt": "é\0\ufeff"})
    corpus = load_corpus("text", "train", path=tmp_path, validation_percent=0)
    assert [document.text for document in corpus.documents] == ["a\ufffdb", "é\0\ufeff"]
    assert corpus.repaired == 1 and not corpus.dropped


def test_invalid_records_are_replaced_and_counted(tmp_path):
    lines = record(id="a", text="\ud800a\U0001f600").encode()
    lines += record(id="b", text="x?").encode().replace(b"?", b"\xff") + record(id="c").encode()
    file = write(tmp_path, {"c.jsonl": lines}) / "c.jsonl"
    corpus = load_corpus("jsonl", "train", path=file, validation_percent=0)
    assert [d.text for d in corpus.documents] == ["\ufffda\U0001f600", "x\ufffd", "text"]
    assert corpus.repaired == 2


def test_unreadable_files_are_dropped_and_counted(tmp_path):
    write(tmp_path, {"good.txt": "text"})
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    corpus = load_corpus("text", "train", path=tmp_path, validation_percent=0)
    assert [document.id for document in corpus.documents] == ["good.txt"]
    assert corpus.dropped == {"unreadable (No such file or directory)": 1}


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_records_are_split_by_their_id(tmp_path, name):
    lines = "\n".join(record(id=str(number), text=f"text {number}") for number in range(100))
    content = gzip.compress(lines.encode()) if name.endswith("gz") else lines
    file = write(tmp_path, {name: content}) / name
    train, validation = (
        texts("jsonl", file, split, validation_percent=20) for split in ("train", "validation")
    )
    assert train and validation and not train.keys() & validation.keys()
    assert train | validation == {str(number): f"text {number}" for number in range(100)}


def test_given_splits_are_kept(tmp_path):
    train = "".join(record(id=f"t{number}") for number in range(20))
    validation = "".join(record(id=f"v{number}") for number in range(20))
    write(
        tmp_path, {"train.jsonl": train, "validation.jsonl.gz": gzip.compress(validation.encode())}
    )
    assert set(texts("jsonl", tmp_path, "train")) == {f"t{number}" for number in range(20)}
    assert set(texts("jsonl", tmp_path, "validation")) == {f"v{number}" for number in range(20)}


def test_title_is_optional(tmp_path):
    file = write(tmp_path, {"c.jsonl": '{"id": "a", "text": "b", "more": 1}'}) / "c.jsonl"
    assert load_corpus("jsonl", "train", path=file, validation_percent=0).documents[0].title == ""


@pytest.mark.parametrize("bad", ["{", "[1]\n", "[" * 100_000, '{"id": "b"}', record(text=3)])
def test_bad_record_is_an_error_with_file_and_line(tmp_path, bad):
    file = write(tmp_path, {"c.jsonl": record() + "\n" + bad}) / "c.jsonl"
    with pytest.raises(DataError, match=r"c\.jsonl, line 3"):
        texts("jsonl", file)


def test_repeated_id_is_an_error_with_both_lines(tmp_path):
    file = write(tmp_path, {"c.jsonl": record() + record(id="b") + record()}) / "c.jsonl"
    with pytest.raises(
        DataError, match=r"c\.jsonl, line 1 and .*c\.jsonl, line 3 share the id 'a'"
    ):
        texts("jsonl", file)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"not gzip"])
def test_damaged_gzip_is_an_error_with_the_file(tmp_path, damage):
    content = gzip.compress(record(text="a long text " * 1000).encode())
    file = write(tmp_path, {"c.jsonl.gz": damage(content)}) / "c.jsonl.gz"
    with pytest.raises(DataError, match=r"c\.jsonl\.gz cannot be read"):
        texts("jsonl", file)


@pytest.mark.parametrize("source", ["stdlib", "text", "jsonl"])
def test_path_of_the_wrong_kind_is_an_error(tmp_path, source):
    file = write(tmp_path, {"c.md": "a,b"}) / "c.md"
    with pytest.raises(DataError, match="not a directory|must end in"):
        texts(source, file)
