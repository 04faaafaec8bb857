"""Laws of PG-19: all of its books in their splits, or a sentence that says what is wrong."""

import base64
import contextlib
import csv
import hashlib
import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from block_recurrent.data import DataError, TfdsDirectory
from block_recurrent.lab.corpora import pg19
from block_recurrent.lab.corpora.corpus_writer import prepare
from block_recurrent.lab.corpora.entries import listed
from block_recurrent.lab.corpora.pg19 import PG19, download

BOOKS = {
    "train": {"9": "nine\r\n", "10": "ten, é", "1342": "It is a truth"},
    "validation": {"11": "eleven"},
    "test": {"12": "twelve"},
}
ROWS = [
    ["9", 'Clarissa, Volume 1, or: "A Name"', "1748", "http://www.gutenberg.org/ebooks/9"],
    *([book, f"Book {book}", "1851", f"http://x/{book}"] for book in ("10", "11", "12", "1342")),
]


def published(root: Path, rows: list[list[str]] = ROWS) -> Path:
    """A local copy of the published directory."""
    for split, books in BOOKS.items():
        (root / split).mkdir(parents=True)
        for book, text in books.items():
            (root / split / f"{book}.txt").write_bytes(text.encode())
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(autouse=True)
def few_books(monkeypatch):
    counts = {split: len(books) for split, books in BOOKS.items()}
    monkeypatch.setattr(pg19, "COUNTS", counts)
    monkeypatch.setattr(pg19, "_PAUSE", 0.0)


def test_the_published_numbers_are_those_of_the_paper(monkeypatch, tmp_path):
    monkeypatch.undo()
    with pytest.raises(DataError) as caught:
        list(PG19(published(tmp_path)).entries())
    assert "train has 3 books, not 28,602; validation has 1 books, not 50; test has" in str(
        caught.value
    )
    assert "--partial" in str(caught.value)
    assert len(list(PG19(tmp_path, expect_counts=False).entries())) == 5


def test_books_have_their_number_text_and_metadata(tmp_path):
    source = PG19(published(tmp_path))
    entries = list(source.entries())
    assert [(*entry.among, entry.id) for entry in entries] == [
        ("train", "9"),
        ("train", "10"),
        ("train", "1342"),
        ("validation", "11"),
        ("test", "12"),
    ]
    content = entries[0].read()
    assert (content.title, content.year) == ('Clarissa, Volume 1, or: "A Name"', 1748)
    assert (content.text, content.link) == ("nine\r\n", "http://www.gutenberg.org/ebooks/9")
    assert not source.left_out


def test_book_ids_of_the_corpus_are_those_of_the_books(tmp_path):
    prepare(PG19(published(tmp_path / "raw")), tmp_path / "corpus")
    directory = TfdsDirectory(tmp_path / "corpus")
    assert [d.id for d in directory.documents("train")] == ["9", "10", "1342"]
    features = (tmp_path / "corpus" / "features.json").read_text(encoding="utf-8")
    assert set(json.loads(features)["featuresDict"]["features"]) == {
        "book_id",
        "book_link",
        "book_text",
        "book_title",
        "publication_date",
        "source",
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["9", "again", "1900", "u"], r"metadata.csv, line 6: a second row for book 9"),
        (["x", "T", "1900", "u"], r"metadata.csv, line 6: .* is not id,title,year,url"),
        (["20", "T", "1900"], r"metadata.csv, line 6: .* is not id,title,year,url"),
        (["20", "T", "about 1900", "u"], r"metadata.csv, line 6: .* is not id,title,year,url"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    source = PG19(published(tmp_path, [*ROWS, row]))
    with pytest.raises(DataError, match=message):
        list(source.entries())


def test_quotes_that_do_not_end_are_an_error(tmp_path):
    source = PG19(published(tmp_path))
    with (tmp_path / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write('20,"never closed\n')
    with pytest.raises(DataError, match=r"metadata.csv cannot be read \(unexpected end"):
        list(source.entries())


def test_books_without_a_row_twice_or_without_a_number_are_errors(tmp_path):
    source = PG19(published(tmp_path, ROWS[:-1]))
    with pytest.raises(DataError, match=r"train/1342.txt: .*metadata.csv has no row for book 1342"):
        list(source.entries())
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata.csv cannot be read .*No such file"):
        list(source.entries())
    twice = tmp_path / "test" / "9.txt"
    twice.touch()
    (tmp_path / "metadata.csv").write_text(
        "\n".join(",".join([*row[:1], "t", "1", "u"]) for row in ROWS)
    )
    with pytest.raises(DataError, match=r"train/9.txt and .*test/9.txt share the id '9'"):
        list(listed(PG19(tmp_path, expect_counts=False)))
    twice.rename(twice.with_name("nine.txt"))
    with pytest.raises(DataError, match=r"nine.txt: a book is called by its number"):
        list(source.entries())


def test_a_path_that_is_no_copy_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds none of the folders train"):
        PG19(tmp_path)


class Bucket:
    """A server that answers as the public bucket does, two files a page."""

    def __init__(self, root: Path):
        self.files = {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        self.files |= {"train/notes.md": b"no", "train/../../evil.txt": b"no"}
        self.asked: Counter[str] = Counter()
        self.damaged: dict[str, list[bytes]] = {}
        self.url = ""

    def answer(self, path: str) -> bytes | None:
        url = urllib.parse.urlsplit(path)
        self.asked[url.path] += 1
        if url.path == "/storage/v1/b/deepmind-gutenberg/o":
            return self.page(**dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True)))
        name = url.path.removeprefix("/deepmind-gutenberg/")
        if self.damaged.get(name):
            return self.damaged[name].pop()
        return self.files.get(name)

    def page(self, prefix: str, pageToken: str) -> bytes:
        names = [name for name in self.files if name.startswith(prefix)]
        start = int(pageToken or 0)
        items = [
            {
                "name": name,
                "size": str(len(self.files[name])),
                "md5Hash": base64.b64encode(hashlib.md5(self.files[name]).digest()).decode(),
            }
            for name in names[start : start + 2]
        ]
        more = {"nextPageToken": str(start + 2)} if names[start + 2 :] else {}
        return json.dumps(
            {"kind": "storage#objects", **({"items": items} if items else {}), **more}
        ).encode()


@pytest.fixture
def bucket(tmp_path) -> Iterator[Bucket]:
    made = Bucket(published(tmp_path / "published"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = made.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_download_is_the_published_directory(bucket, tmp_path):
    steps = []
    download(tmp_path / "dl", server=bucket.url, report=lambda *step: steps.append(step))
    assert tree(tmp_path / "dl") == tree(tmp_path / "published")
    assert steps == [(number, 6) for number in range(7)]
    assert len(list(PG19(tmp_path / "dl").entries())) == 5


def test_a_download_goes_on_with_what_is_missing(bucket, tmp_path):
    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "dl", server=bucket.url, workers=1, report=stop)
    there = set(tree(tmp_path / "dl"))
    assert 0 < len(there) < 6
    (tmp_path / "dl" / "train").mkdir(exist_ok=True)
    (tmp_path / "dl" / "train" / "10.txt").write_bytes(b"cut")
    download(tmp_path / "dl", server=bucket.url)
    assert tree(tmp_path / "dl") == tree(tmp_path / "published")
    assert all(bucket.asked[f"/deepmind-gutenberg/{name}"] == 1 for name in there)


def test_what_comes_damaged_is_asked_for_again_and_never_kept(bucket, tmp_path):
    bucket.damaged["train/10.txt"] = [b"ten, ?!", b"short"]
    download(tmp_path / "dl", server=bucket.url)
    assert tree(tmp_path / "dl") == tree(tmp_path / "published")
    assert bucket.asked["/deepmind-gutenberg/train/10.txt"] == 3
    bucket.damaged["train/10.txt"] = [b"ten, ?!"] * 9
    with pytest.raises(DataError, match=r"10.txt cannot be downloaded \(7 bytes came that are"):
        download(tmp_path / "two", server=bucket.url)
    assert "train/10.txt" not in tree(tmp_path / "two")


def test_without_a_server_it_is_one_sentence(bucket, tmp_path):
    with pytest.raises(DataError, match=r"cannot be downloaded .*: check the network; the same"):
        download(tmp_path / "dl", server="http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"cannot be downloaded \(HTTP Error 404"):
        download(tmp_path / "dl", server=bucket.url + "/nothing")
    assert not (tmp_path / "dl").exists()


def test_a_download_to_where_nothing_can_be_written_is_a_sentence(bucket, tmp_path):
    (tmp_path / "dl").write_text("a file")
    with pytest.raises(DataError, match=r"dl.* cannot be written: "):
        download(tmp_path / "dl", server=bucket.url)
