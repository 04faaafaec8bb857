"""Intact files of every kind that is read, and their public readers."""

import base64
import functools
import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow
import tokenizers
import zstandard
from pyarrow import ipc, parquet

from block_recurrent import gin_files
from block_recurrent.config import ConfigError
from block_recurrent.data import ByteTokenizer, DataError, Document
from block_recurrent.data.text_files import TextFiles
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.token_cache import cached_tokens
from block_recurrent.data.vocabularies import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
)
from block_recurrent.lab.corpora.archives import read_archive
from block_recurrent.lab.corpora.corpus_writer import prepare
from block_recurrent.lab.corpora.entries import Unusable
from block_recurrent.lab.corpora.latex import LatexBundles
from block_recurrent.lab.corpora.repositories import Repositories
from block_recurrent.lab.corpora.text import Texts
from block_recurrent.lab.corpora.train_vocab import train_vocabulary
from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints, read_parameters
from block_recurrent.runs.errors import RunError
from block_recurrent.runs.exported import load_safetensors, save_safetensors
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.runs.trained import TrainedModel
from block_recurrent.training.build import make_model
from tests.helpers import model_config, random_train_state

REFUSALS = (DataError, ConfigError, CheckpointError, RunError)
SENTENCE = "the quick brown fox jumps over the lazy dog, und dann schläft er wieder ein. "
TEXTS = [SENTENCE[7 * n :] + SENTENCE * (n + 1) for n in range(4)]
CHANGED, KEPT = "changed", "kept"
Items = dict[str, Any]


class Kind(NamedTuple):
    """Files of a kind.

    Attributes:
      make: writes intact files to a folder. Those whose paths begin with `CHANGED` are changed.
      read: returns what the files hold. What a changed file may alter is called `CHANGED` and more;
        all else must stay as it was.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Items]


def _records(name: str) -> list[dict[str, str]]:
    return [{"id": f"{name}-{n}", "text": text, "title": "T"} for n, text in enumerate(TEXTS)]


def _lines(name: str) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in _records(name)).encode()


def _csv(name: str) -> bytes:
    return ("id,text\n" + "".join(f'{r["id"]},"{r["text"]}"\n' for r in _records(name))).encode()


def _zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def _parquet(name: str) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(_records(name)), file, row_group_size=2)
    return file.getvalue()


def _arrow(name: str, *, stream: bool = False) -> bytes:
    table, file = pyarrow.Table.from_pylist(_records(name)), io.BytesIO()
    with (ipc.new_stream if stream else ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def valid_contents() -> list[bytes]:
    """Whole files of several kinds, to be found where others are expected."""
    return [_lines("other"), gzip.compress(_lines("other")), _parquet("other"), _tar("other")]


def _two(ending: str, content: Callable[[str], bytes]) -> Callable[[Path], None]:
    """Makes a file that is changed and one that is not."""

    def make(folder: Path) -> None:
        for name in (CHANGED, KEPT):
            (folder / f"{name}{ending}").write_bytes(content(name))

    return make


def _read_tables(folder: Path) -> Items:
    found = TextFiles([folder])
    return {
        f"{file.name}: {n}": record
        for file in found.files
        for n, record in enumerate(found.records(file))
    }


def _packed(contents: Mapping[str, bytes]) -> bytes:
    """A tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _tar(name: str) -> bytes:
    paper = "\\documentclass{article}\n\\begin{document}\n%s\\end{document}"
    return _packed({f"{name}/{n}.tex": (paper % text).encode() for n, text in enumerate(TEXTS)})


def _in_tar(name: str) -> bytes:
    """A tar file of compressed papers, as arXiv's bulk downloads are."""
    return _packed({f"{name}/070{n}.0001.gz": gzip.compress(_tar(name)) for n in range(3)})


def _read_archives(folder: Path) -> Items:
    found = {}
    for path in sorted(folder.iterdir()):
        try:
            found[path.name] = read_archive(path)
        except Unusable as error:
            found[path.name] = error.reason
    return found


def _entries(source: Any, folder: Path) -> Items:
    found = {}
    for entry in source.entries():
        try:
            found[entry.where.removeprefix(f"{folder}/")] = entry.id, entry.read()
        except Unusable as error:
            found[entry.where.removeprefix(f"{folder}/")] = entry.id, error.reason
    return found


def _read_bundles(folder: Path) -> Items:
    return _entries(LatexBundles(folder), folder)


def _make_repositories(folder: Path) -> None:
    environment = os.environ | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for name in (CHANGED, KEPT):
        for n, text in enumerate(TEXTS):
            (folder / name / f"d{n}").mkdir(parents=True)
            (folder / name / f"d{n}/f.py").write_text(text)
        for words in (
            ["init", "--quiet"],
            ["add", "."],
            [*author, "commit", "-qm", "m"],
            ["gc", "-q"],
        ):
            subprocess.run(["git", *words], cwd=folder / name, env=environment, check=True)


def _read_vocabulary(kind: Callable[[Path], Any]) -> Callable[[Path], Items]:
    def read(folder: Path) -> Items:
        tokenizer = kind(folder / "changed.model")
        tokens = tokenizer.encode(TEXTS[0])
        assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab_size
        tokenizer.decode(tokens)
        assert len(tokenizer.spellings()) == tokenizer.vocab_size
        return {}

    return read


def _documents() -> list[Document]:
    return [Document(f"d{n}", "T", text) for n, text in enumerate(TEXTS)]


def _make_sentencepiece(folder: Path) -> None:
    (folder / "changed.model").write_bytes(train_vocabulary(_documents(), 292))


def _make_huggingface(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "changed.model"))


def _make_tiktoken(folder: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b"qu"]
    lines = [f"{base64.b64encode(token).decode()} {n}\n" for n, token in enumerate(tokens)]
    (folder / "changed.model").write_text("".join(lines))


def _make_corpus(folder: Path, *, cache: bool) -> None:
    raw = folder.with_name(f"raw-{folder.name}")
    raw.mkdir(exist_ok=True)
    for n in range(12):
        (raw / f"{n}.txt").write_text(TEXTS[n % 4] + str(n))
    prepare(Texts([raw]), folder / (KEPT if cache else CHANGED))
    if cache:
        _read_cache(folder)


def _read_corpus(folder: Path) -> Items:
    corpus = TfdsDirectory(folder / CHANGED)
    return {split: list(corpus.documents(split)) for split in corpus.splits}


def _read_cache(folder: Path) -> Items:
    corpus = TfdsDirectory(folder / KEPT)
    tokens = cached_tokens(corpus, "train", ByteTokenizer(), folder / CHANGED)
    for n in range(len(tokens)):
        tokens.verify(n)
    return {"tokens": (tokens.ids, bytes(tokens.tokens), tokens.ends.tolist(), tokens.summary())}


def _make_gin(folder: Path) -> None:
    (folder / "changed.gin").write_text(
        'include "sizes/tiny.gin"\nSIZE = 64  # a macro\nmodel.vocab_size = 256\n'
        'model.model_size = %SIZE\nmodel.recurrent_layers = (1,)\ndata.source = "stdlib"\n'
    )


def _read_gin(folder: Path) -> Items:
    gin_files.load([folder / "changed.gin"], needs_data=False)
    return {}


def _make_metrics(folder: Path) -> None:
    lines = [{"step": n, "bits_per_token": 8 / (n + 1), "note": "é"} for n in range(30)]
    (folder / "changed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_metrics(folder: Path) -> Items:
    read_metrics(folder / "changed.jsonl")
    return {}


@functools.cache
def _state() -> Any:
    return random_train_state(model_config(num_layers=1))._replace(step=jnp.int32(3))


def _make_checkpoint(folder: Path) -> None:
    store = Checkpoints(folder / CHANGED)
    store.save(_state(), {"epoch": 1}, loss=1.5)
    store.wait()
    store.close()


def _read_checkpoint(folder: Path) -> Items:
    return {name: np.asarray(x).tobytes() for name, x in read_parameters(folder / CHANGED).items()}


def _make_safetensors(folder: Path) -> None:
    config = gin_files.load(["sizes/tiny.gin"], ["model.vocab_size=256", "data.source='stdlib'"])
    trained = TrainedModel(make_model(config), config, ByteTokenizer(), 3, {"epoch": 1})
    save_safetensors(trained, folder / "changed.safetensors")


def _read_safetensors(folder: Path) -> Items:
    trained = load_safetensors(folder / "changed.safetensors")
    arrays = {name: np.asarray(x).tobytes() for name, x in named_parameters(trained.model).items()}
    return arrays | {"step": trained.step, "progress": trained.progress}


KINDS: Mapping[str, Kind] = {
    "text": Kind(_two(".txt", lambda name: "\n".join(TEXTS).encode()), _read_tables),
    "jsonl": Kind(_two(".jsonl", _lines), _read_tables),
    "jsonl.gz": Kind(_two(".jsonl.gz", lambda name: gzip.compress(_lines(name))), _read_tables),
    "jsonl.zst": Kind(_two(".jsonl.zst", lambda name: _zst(_lines(name))), _read_tables),
    "json": Kind(_two(".json", lambda name: json.dumps(_records(name)).encode()), _read_tables),
    "csv": Kind(_two(".csv", _csv), _read_tables),
    "parquet": Kind(_two(".parquet", _parquet), _read_tables),
    "arrow": Kind(_two(".arrow", _arrow), _read_tables),
    "arrow stream": Kind(_two(".arrow", functools.partial(_arrow, stream=True)), _read_tables),
    "archive": Kind(_two(".tar.gz", lambda name: gzip.compress(_tar(name))), _read_archives),
    "latex": Kind(_two(".tar", _tar), _read_bundles),
    "latex in tar": Kind(_two(".tar", _in_tar), _read_bundles),
    "git": Kind(_make_repositories, lambda folder: _entries(Repositories([folder]), folder)),
    "sentencepiece": Kind(_make_sentencepiece, _read_vocabulary(SentencePieceTokenizer)),
    "huggingface": Kind(_make_huggingface, _read_vocabulary(HuggingFaceTokenizer)),
    "tiktoken": Kind(
        _make_tiktoken, _read_vocabulary(lambda path: TiktokenTokenizer(path, "gpt2"))
    ),
    "corpus": Kind(functools.partial(_make_corpus, cache=False), _read_corpus),
    "token cache": Kind(functools.partial(_make_corpus, cache=True), _read_cache),
    "gin": Kind(_make_gin, _read_gin),
    "metrics": Kind(_make_metrics, _read_metrics),
    "checkpoint": Kind(_make_checkpoint, _read_checkpoint),
    "safetensors": Kind(_make_safetensors, _read_safetensors),
}
