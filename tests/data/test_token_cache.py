"""Laws of token caches: what comes back is what was tokenized, or an error says why not."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from block_recurrent.data import (
    ByteTokenizer,
    Corpus,
    DataError,
    Document,
    TrainingLanes,
    cached_tokens,
    evaluation_batches,
    tokenize,
)
from block_recurrent.system.digests import unseal
from tests.helpers import files_limited_to

TEXTS = [f"document {i} " * (i % 7 + 1) + "é" for i in range(150)]
DOCUMENTS = tuple(Document(f"d{i}", "", text) for i, text in enumerate(TEXTS))


class Prepared:
    """A prepared corpus in memory that counts how often it is read."""

    name = "mine"
    path = Path("somewhere")
    reads = 0

    def __init__(self, documents=DOCUMENTS, fingerprint="f" * 64):
        self._documents, self.fingerprint = documents, fingerprint

    def documents(self, split):
        self.reads += 1
        return iter(self._documents)


class Upper(ByteTokenizer):
    name = "upper"

    def encode(self, text):
        return super().encode(text.upper())


def cached(path, corpus=None, split="train", tokenizer=None, **options):
    return cached_tokens(corpus or Prepared(), split, tokenizer or ByteTokenizer(), path, **options)


def read_all(tokens) -> int:
    return sum(batch.mask.sum() for batch in evaluation_batches(tokens, 2, 8, 256))


def folder_of(path) -> Path:
    (folder,) = path.iterdir()
    return folder


@pytest.mark.parametrize("ends", [False, True])
def test_a_cache_holds_what_tokenizing_in_memory_gives(ends, tmp_path):
    expected = tokenize(Corpus(DOCUMENTS), ByteTokenizer(), end_of_document=ends)
    for _ in range(2):
        tokens = cached(tmp_path, end_of_document=ends)
        for name in ("tokens", "ends", "byte_counts", "word_counts"):
            np.testing.assert_array_equal(getattr(tokens, name), getattr(expected, name))
        for name in ("fingerprint", "lost", "tokenizer", "vocab_size", "beginning_of_document"):
            assert getattr(tokens, name) == getattr(expected, name)
        assert tuple(tokens.ids) == expected.ids
        assert isinstance(tokens.tokens, np.memmap) and not tokens.tokens.flags.writeable


def test_a_corpus_is_tokenized_once_for_each_split_and_tokenizer(tmp_path):
    corpus = Prepared()
    sizes = []
    for _ in range(2):
        cached(tmp_path, corpus, progress=sizes.append)
        cached(tmp_path, corpus, "validation")
        cached(tmp_path, corpus, tokenizer=Upper())
        cached(tmp_path, corpus, end_of_document=True)
    assert corpus.reads == 4 and len(list(tmp_path.iterdir())) == 4
    assert sizes == np.cumsum([len(text.encode()) for text in TEXTS]).tolist()
    cached(tmp_path, other := Prepared(fingerprint="0" * 64))
    assert other.reads == 1


def test_lanes_on_a_cache_are_those_on_memory(tmp_path):
    tokens = [cached(tmp_path), tokenize(Corpus(DOCUMENTS), ByteTokenizer())]
    mapped, memory = (TrainingLanes(each, 3, 8, 256, seed=1) for each in tokens)
    for _ in range(30):
        for a, b in zip(next(mapped), next(memory), strict=True):
            np.testing.assert_array_equal(a, b)
    assert mapped.position == memory.position


def test_a_cache_that_is_removed_while_a_run_reads_it_is_read_to_the_end(tmp_path):
    lanes = TrainingLanes(cached(tmp_path / "caches"), 3, 8, 256, seed=1)
    memory = TrainingLanes(tokenize(Corpus(DOCUMENTS), ByteTokenizer()), 3, 8, 256, seed=1)
    shutil.rmtree(tmp_path / "caches")
    for _ in range(30):
        np.testing.assert_array_equal(next(lanes).inputs, next(memory).inputs)


@pytest.mark.parametrize("name", ["tokens.bin", "index.npy", "ids.json", "cache.json"])
@pytest.mark.parametrize("change", ["cut", "deleted", "flipped", "nested"])
def test_a_damaged_cache_is_an_error_that_names_it(name, change, tmp_path):
    cached(tmp_path)
    file = folder_of(tmp_path) / name
    content = file.read_bytes()
    if change == "deleted":
        file.unlink()
    elif change == "nested":
        file.write_bytes(b"[" * 100_000)
    elif change == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        file.write_bytes(content[:-5])
    if name == "tokens.bin" and change == "flipped":
        with pytest.raises(DataError, match="tokens of document 'd7[0-9]'"):
            read_all(cached(tmp_path))
    else:
        folder = folder_of(tmp_path)
        with pytest.raises(DataError, match=f"token cache {folder} is.*Delete it"):
            cached(tmp_path)


def test_every_change_of_what_a_cache_says_of_itself_is_an_error(tmp_path):
    cached(tmp_path)
    file = folder_of(tmp_path) / "cache.json"
    facts = unseal(file.read_bytes())
    for name in facts:
        for changed in (facts | {name: 7}, {key: facts[key] for key in facts if key != name}):
            file.write_text(json.dumps(changed))
            with pytest.raises(DataError, match=r"cache\.json cannot be read"):
                cached(tmp_path)


def test_a_cache_of_something_else_is_an_error(tmp_path):
    cached(tmp_path / "a")
    cached(tmp_path / "b", tokenizer=Upper())
    (place,) = (tmp_path / "a").iterdir()
    place.rename(tmp_path / "away")
    folder_of(tmp_path / "b").rename(place)
    with pytest.raises(DataError, match="is of tokenizer 'upper', not 'bytes'"):
        cached(tmp_path / "a")


def test_an_error_while_tokenizing_leaves_nothing(tmp_path):
    corpus = Prepared((*DOCUMENTS, Document("bad", "", "")))
    with pytest.raises(DataError, match="mine train.*document 'bad' has no tokens"):
        cached(tmp_path, corpus)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(tmp_path):
    message = r"cannot be written.*data\.cache_path.*Nothing was"
    with files_limited_to(1000), pytest.raises(DataError, match=message):
        cached(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = platform.node()
    gone = tmp_path / f".building-{process.pid}@{here}-x"
    busy = tmp_path / f".building-{os.getppid()}@{here}-x"
    elsewhere = tmp_path / f".building-{process.pid}@{here}-2-x"  # of a host of another name
    for folder in (gone, busy, elsewhere):
        folder.mkdir()
        (folder / "tokens.bin").write_text("half")
    cached(tmp_path)
    assert not gone.exists() and busy.exists() and elsewhere.exists()


def test_the_faster_of_two_processes_provides_the_cache(tmp_path):
    class Slow(Prepared):
        def documents(self, split):
            yield from super().documents(split)
            cached(tmp_path)  # another process, meanwhile

    tokens = cached(tmp_path, Slow())
    assert len(list(tmp_path.iterdir())) == 1
    facts = unseal((folder_of(tmp_path) / "cache.json").read_bytes())
    assert facts["tokens"] == len(tokens.tokens)
