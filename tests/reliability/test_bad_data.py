"""Bad data, from raw files to batches: kept to the byte, dropped and counted, or an error."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from block_recurrent.data import (
    ByteTokenizer,
    DataError,
    TfdsDirectory,
    TokenizedCorpus,
    TrainingLanes,
    cached_tokens,
    evaluation_batches,
    load_corpus,
    tokenize,
)
from block_recurrent.data.token_cache import _index_digest
from block_recurrent.system.digests import digest_number, seal, unseal
from experiments import prepare_data, train
from tests.synthetic_runs import exit_status

SEGMENT = 64
LONG = 50_000_000
BAD = 3

# Raw bytes, and what of them is read; None where nothing is.
FILES = {
    "empty": (b"", None),
    "blank": (b" \n\t\r\n", None),
    "one": (b"x", b"x"),
    "short": (b"shorter than a segment\r\n", b"shorter than a segment\r\n"),
    "exact": (b"0123456789abcde\n" * 12, b"0123456789abcde\n" * 12),
    "over": (b"0123456789abcde\n" * 12 + b"!", b"0123456789abcde\n" * 12 + b"!"),
    "nul": (b"\0a\0\0b" * 20 + b"\0", b"\0a\0\0b" * 20 + b"\0"),
    "nul_only": (b"\0", b"\0"),
    "latin": (b"caf\xe9 \xff\xfe ok", "caf\ufffd \ufffd\ufffd ok".encode()),
    "cut": ("書".encode()[:2], "\ufffd".encode()),
    "bom": (b"x\xef\xbb\xbf\x1a\x7f", b"x\xef\xbb\xbf\x1a\x7f"),
}
KEPT = {name: text for name, (_, text) in FILES.items() if text is not None}
DROPPED, REPAIRED = len(FILES) - len(KEPT), 2


def documents_of(corpus: TokenizedCorpus, segment: int = SEGMENT) -> Iterator[tuple[str, bytes]]:
    """Id and text of every document as evaluation reads it, in one lane, longest first."""
    order = sorted(range(len(corpus)), key=lambda index: -corpus.length(index))
    pieces: list[list[bytes]] = []
    for batch in evaluation_batches(corpus, 1, segment, 256):
        if batch.start_of_document[0]:
            pieces.append([])
        pieces[-1].append(batch.targets[batch.mask].astype(np.uint8).tobytes())
    for index, parts in zip(order, pieces, strict=True):
        yield corpus.ids[index], b"".join(parts)


def bytes_of_an_epoch(corpus: TokenizedCorpus, segment: int = SEGMENT) -> int:
    """How many targets training reads until every document has been opened and ended once."""
    lanes, count = TrainingLanes(corpus, 1, segment, 256), 0
    while lanes.position["epoch"] == 0:
        batch = next(lanes)
        position = lanes.position
        count += int(batch.mask.sum()) if position["epoch"] == 0 else 0
        if position["cursor"] == len(corpus) and position["lanes"] == [None]:
            return count
    raise AssertionError("an epoch without an end")


def stem(document_id: str) -> str:
    return document_id.removesuffix(".txt")


def prepare(*words: object) -> int:
    every = ("--validation_percent=0", "--test_percent=0")
    status = exit_status(prepare_data.main, "text", *words, *every)
    assert isinstance(status, int)
    return status


def tokens_of(folder: Path) -> TokenizedCorpus:
    return cached_tokens(TfdsDirectory(folder), "train", ByteTokenizer(), folder / "token_cache")


def write_text(folder: Path) -> Path:
    folder.mkdir()
    for name, (raw, _) in FILES.items():
        (folder / f"{name}.txt").write_bytes(raw)
    (folder / "image.png").write_bytes(b"x")
    return folder


def write_jsonl(folder: Path) -> Path:
    """The same texts as records; invalid bytes are written as they are."""
    folder.mkdir()
    escapes = {b"\0": rb"\u0000", b"\n": rb"\n", b"\r": rb"\r", b"\t": rb"\t", b"\x1a": rb"\u001a"}
    lines = []
    for name, (raw, _) in FILES.items():
        for byte, escape in escapes.items():
            raw = raw.replace(byte, escape)
        lines.append(b'{"id": "%s", "text": "%s"}\n' % (name.encode(), raw))
    (folder / "train.jsonl").write_bytes(b"\n\n".join(lines))
    return folder


WRITERS = {"text": write_text, "jsonl": write_jsonl}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_prepared_corpus_has_every_byte_or_counts_it(kind, tmp_path, capsys):
    raw = WRITERS[kind](tmp_path / "raw")
    assert prepare(raw, f"--output={tmp_path / 'out'}") == 0
    said = capsys.readouterr().out
    corpus = tokens_of(tmp_path / "out")
    assert {stem(name): text for name, text in documents_of(corpus)} == KEPT
    total = sum(map(len, KEPT.values()))
    assert bytes_of_an_epoch(corpus) == corpus.byte_counts.sum() == total
    assert f"{len(KEPT)} documents {total:>18,} bytes" in said
    assert f"dropped documents: {DROPPED} no text" in said
    assert f"repaired, with invalid bytes: {REPAIRED} documents" in said
    assert ("left out by the source: 1 not .txt" in said) == (kind == "text")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_read_directly_has_every_byte_or_counts_it(kind, tmp_path):
    raw = WRITERS[kind](tmp_path / "raw")
    corpus = tokenize(load_corpus(kind, "train", path=raw, validation_percent=0), ByteTokenizer())
    assert {stem(name): text for name, text in documents_of(corpus)} == KEPT
    assert bytes_of_an_epoch(corpus) == sum(map(len, KEPT.values()))
    assert f"dropped: {DROPPED} empty" in corpus.summary()
    assert f"repaired, with invalid UTF-8: {REPAIRED}" in corpus.summary()


@pytest.mark.parametrize("name, segments", [("short", 1), ("exact", 3), ("over", 4)])
def test_a_document_takes_as_many_segments_as_it_fills(name, segments, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "d.txt").write_bytes(FILES[name][0])
    assert prepare(tmp_path / "raw", f"--output={tmp_path / 'out'}") == 0
    batches = list(evaluation_batches(tokens_of(tmp_path / "out"), 1, SEGMENT, 256))
    assert len(batches) == segments
    assert [batch.start_of_document.item() for batch in batches] == [True] + [False] * (
        segments - 1
    )
    assert all(batch.mask.all() for batch in batches[:-1])
    assert batches[-1].mask.all() == (name == "exact") and batches[-1].mask.any()


@pytest.mark.slow
def test_a_line_of_50_megabytes_arrives_whole(tmp_path):
    """All its parts differ, so that none can take the place of another."""
    numbers = np.arange(LONG // 10, dtype=np.int64)
    text = np.char.mod("%09d ", numbers).astype("S10").tobytes()
    assert len(text) == LONG and b"\n" not in text
    (tmp_path / "raw.jsonl").write_bytes(b'{"id": "long", "text": "' + text + b'"}\n')
    assert prepare(tmp_path / "raw.jsonl", f"--output={tmp_path / 'out'}") == 0
    corpus = tokens_of(tmp_path / "out")
    (found,) = documents_of(corpus, segment=2**20)
    assert found[0] == "long" and found[1] == text
    assert bytes_of_an_epoch(corpus, segment=2**20) == LONG


DAMAGED_RAW = {
    "no JSON": ("a.jsonl", b'{"id": "a", "text": "x"}\n{"id": "b"\n', "a.jsonl, line 2"),
    "no text": ("a.jsonl", b'{"id": "a", "text": "x"}\n\n{"id": "b"}\n', "a.jsonl, line 3"),
    "a number for a text": ("a.jsonl", b'{"id": "a", "text": 7}\n', "a.jsonl, line 1"),
    "no record": ("a.jsonl", b'{"id": "a", "text": "x"}\n[1]\n', "a.jsonl, line 2"),
    "a cut archive": ("a.jsonl.gz", gzip.compress(b'{"id": "a"}' * 99)[:-9], "a.jsonl.gz"),
    "no archive": ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
    "no table": ("a.parquet", b"PAR1 no table", "a.parquet"),
    "an id twice": ("a.jsonl", b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "line 2"),
    "nothing but empty texts": ("a.jsonl", b'{"id": "a", "text": " "}\n', "no text"),
}


@pytest.mark.parametrize("name, content, words", DAMAGED_RAW.values(), ids=DAMAGED_RAW)
def test_damaged_raw_data_is_an_error_with_file_and_record(name, content, words, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert prepare(tmp_path / name, f"--output={tmp_path / 'out'}") == BAD
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_an_id_in_two_files_is_an_error_with_both(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "text": "t"}\n')
    assert prepare(tmp_path, f"--output={tmp_path.parent / 'out'}") == BAD
    said = capsys.readouterr().err
    assert "a.jsonl, line 1" in said and "b.jsonl, line 1" in said and "'x'" in said


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A corpus of one shard that is larger than 64 KiB."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "raw").mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        (folder / "raw" / f"{number}.txt").write_text(random.bytes(10_000).hex())
    assert prepare(folder / "raw", f"--output={folder / 'out'}") == 0
    return folder / "out"


@pytest.fixture
def copy(prepared, tmp_path) -> tuple[Path, Path]:
    """A copy of the corpus, and its shard."""
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    (shard,) = folder.glob("*.array_record*")
    assert shard.stat().st_size > 2 * 65_536
    return folder, shard


def cut(size: int):
    return lambda shard: shard.write_bytes(shard.read_bytes()[:size])


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[90_000] ^= 4
    shard.write_bytes(data)


DAMAGED_SHARDS = {
    "missing": Path.unlink,
    "empty": cut(0),
    "cut at 64 KiB": cut(65_536),
    "cut in a record": cut(100_000),
    "without its end": cut(-1),
    "one bit": flip,
}


@pytest.mark.parametrize("damage", DAMAGED_SHARDS.values(), ids=DAMAGED_SHARDS)
def test_a_damaged_shard_is_an_error_with_its_name_and_leaves_no_cache(damage, copy):
    folder, shard = copy
    damage(shard)
    with pytest.raises(DataError) as caught:
        tokens_of(folder)
    assert shard.name in str(caught.value)
    assert shard.exists() == (", record " in str(caught.value))
    assert list((folder / "token_cache").glob("*")) == []


def test_a_missing_shard_ends_the_program_before_it_has_changed_anything(copy, tmp_path, capsys):
    folder, shard = copy
    shard.unlink()
    data = ["--gin.data.source=tfds", f"--gin.data.path={folder}"]
    words = ["--gin_file=sizes/tiny.gin", f"--workdir={tmp_path / 'run'}", *data]
    assert exit_status(train.main, *words) == BAD
    assert shard.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Wide(ByteTokenizer):
    """Bytes in a vocabulary whose ids need two bytes."""

    name, vocab_size = "wide", 300


def test_a_token_outside_the_vocabulary_is_an_error_with_its_document(copy):
    """The cache is written anew with it, checksums and all: only the reader can notice."""
    folder, _ = copy
    corpus, cache = TfdsDirectory(folder), folder / "token_cache"
    found = cached_tokens(corpus, "train", Wide(), cache)
    (place,) = cache.iterdir()
    tokens, index = np.array(found.tokens), np.load(place / "index.npy")
    begin, end = found.span(3)
    tokens[begin + 100] = 60_000
    index[3, 3] = digest_number(tokens[begin:end])
    (place / "tokens.bin").write_bytes(tokens.tobytes())
    np.save(place / "index.npy", index)
    facts = unseal((place / "cache.json").read_bytes())
    (place / "cache.json").write_text(seal(facts | {"index_sha256": _index_digest(place)}))
    damaged = cached_tokens(corpus, "train", Wide(), cache)
    with pytest.raises(DataError, match=f"document {found.ids[3]!r} has token id 60000"):
        list(evaluation_batches(damaged, 2, SEGMENT, 300))
    with pytest.raises(DataError, match=f"document {found.ids[3]!r} has token id 60000"):
        for _, _ in zip(TrainingLanes(damaged, 8, SEGMENT, 300), range(400), strict=False):
            pass


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(prepared, tmp_path):
    found = cached_tokens(TfdsDirectory(prepared), "train", Wide(), tmp_path)
    with pytest.raises(DataError, match="vocab_size = 256 is too small"):
        TrainingLanes(found, 2, SEGMENT, 256)
