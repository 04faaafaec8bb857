"""Token caches: a prepared corpus is tokenized once, into files that are mapped into memory.

A cache is a folder for each corpus, tokenizer and split:

    tokens.bin      all tokens, document after document, in the smallest unsigned type
    index.npy       [4, D] int64: where each document ends, its UTF-8 bytes, its words, and a
                    digest of its tokens, which is checked when the document is opened
    ids.json        the documents' ids
    cache.json      corpus, tokenizer and split, the counts, the digest of index and ids, and a
                    digest of all that

The folder has a temporary name until it is complete.
"""

import hashlib
import itertools
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from block_recurrent.data.documents import DataError, Document, byte_count, word_count
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.data.tokenized import (
    Fingerprint,
    TokenizedCorpus,
    encode_document,
    end_tokens,
    lost_bytes,
    token_type,
)
from block_recurrent.data.tokenizers import Tokenizer
from block_recurrent.system.digests import digest, digest_number, seal, unseal
from block_recurrent.system.files import reason, remove, whole_folder

FORMAT = 2
_BUILDING = ".building-"
_DOCUMENTS_AT_ONCE = 64
_Encoded = tuple[Document, np.ndarray]


def cached_tokens(
    corpus: TfdsDirectory,
    split: str,
    tokenizer: Tokenizer,
    cache_path: Path,
    progress: Callable[[int], None] = lambda size: None,
    *,
    end_of_document: bool = False,
) -> TokenizedCorpus:
    """Returns the tokens of a split from the cache below `cache_path`; the first call makes it.

    Several processes may call this at once. Each process that finds no cache makes one, and all of
    them read the one that is finished first.

    Args:
      corpus: the documents.
      split: which of them.
      tokenizer: turns them into tokens.
      cache_path: folder of all caches of this corpus.
      progress: called with the number of bytes tokenized so far.
      end_of_document: whether each document ends with the token that begins documents.

    Raises:
      DataError: the corpus or the cache is damaged, the cache belongs to another corpus or
        tokenizer, or it cannot be written.
    """
    identity = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizer.name,
        "split": split,
    } | ({"end_of_document": True} if end_of_document else {})
    kind = tokenizer.name.partition(":")[0]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    folder = cache_path / f"{split}-{kind}-{name[:16]}"
    origin = f"{corpus.name} {split} ({corpus.path})"
    if not folder.exists():
        documents = _encode(corpus.documents(split), tokenizer, origin)
        try:
            added = end_tokens(tokenizer, end_of_document)
            _build(folder, documents, tokenizer, added, identity, progress)
        except OSError as error:
            if not folder.exists():  # no other process was faster
                raise DataError(
                    f"the token cache {folder} cannot be written: {reason(error)}; make room "
                    "there, or set data.cache_path to a folder with more. Nothing was left behind."
                ) from error
    return _open(folder, origin, identity, tokenizer)


def _encode(documents: Iterator[Document], tokenizer: Tokenizer, origin: str) -> Iterator[_Encoded]:
    """Tokenizes documents on all cores, some documents ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(itertools.islice(documents, _DOCUMENTS_AT_ONCE)):
            encoded = pool.map(lambda one: encode_document(one, tokenizer, origin), some)
            yield from zip(some, encoded, strict=True)


def _build(
    folder: Path,
    documents: Iterable[_Encoded],
    tokenizer: Tokenizer,
    added: np.ndarray,
    identity: dict[str, Any],
    progress: Callable[[int], None],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    name = f"{_BUILDING}{os.getpid()}@{platform.node()}-{secrets.token_hex(4)}"
    fingerprint, lost, size, end = Fingerprint(tokenizer.name), 0, 0, 0
    ids, index = [], []
    with whole_folder(folder, folder.with_name(name)) as building:
        with open(building / "tokens.bin", "wb") as file:
            for document, tokens in documents:
                lost += lost_bytes(document.text, tokens, tokenizer)
                tokens = np.append(tokens, added)
                file.write(tokens.tobytes())
                fingerprint.add(document.id, tokens)
                end += len(tokens)
                ids.append(document.id)
                counts = byte_count(document), word_count(document)
                index.append((end, *counts, digest_number(tokens)))
                size += counts[0]
                progress(size)
        np.save(building / "index.npy", np.array(index, np.int64).reshape(-1, 4).T)
        (building / "ids.json").write_text(json.dumps(ids))
        facts = {
            "documents": len(ids),
            "tokens": end,
            "lost": lost,
            "fingerprint": fingerprint.hexdigest(),
            "index_sha256": _index_digest(building),
        }
        (building / "cache.json").write_text(seal(identity | facts))


def _remove_leftovers(parent: Path) -> None:
    """Removes unfinished folders of processes of this machine that no longer run."""
    for leftover in parent.glob(f"{_BUILDING}*"):
        process, _, host = leftover.name.removeprefix(_BUILDING).rpartition("-")[0].partition("@")
        if host != platform.node():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            remove(leftover)
        except (ValueError, PermissionError):
            continue


def _index_digest(folder: Path) -> str:
    return digest(b"".join((folder / name).read_bytes() for name in ("index.npy", "ids.json")))


def _open(
    folder: Path, origin: str, identity: dict[str, Any], tokenizer: Tokenizer
) -> TokenizedCorpus:
    try:
        facts = unseal((folder / "cache.json").read_bytes())
        index_digest = _index_digest(folder)
    except OSError as error:
        raise _damaged(folder, str(error)) from error
    except ValueError as error:
        raise _damaged(folder, f"cache.json cannot be read ({error})") from error
    for name, value in identity.items():
        if facts.get(name) != value:
            raise DataError(
                f"the token cache {folder} is of {name} {facts.get(name)!r}, not {value!r}: it was "
                "moved or changed. Delete it; the next run makes a new one."
            )
    if index_digest != facts["index_sha256"]:
        raise _damaged(folder, "index.npy or ids.json has changed")
    dtype = token_type(tokenizer.vocab_size)
    file, expected = folder / "tokens.bin", facts["tokens"] * dtype.itemsize
    size = file.stat().st_size if file.exists() else 0
    if size != expected:
        raise _damaged(folder, f"tokens.bin has {size:,} bytes instead of {expected:,}")
    ends, byte_counts, word_counts, checksums = np.load(folder / "index.npy")
    return TokenizedCorpus(
        origin,
        json.loads((folder / "ids.json").read_text()),
        np.memmap(file, dtype, mode="r"),
        ends,
        byte_counts,
        word_counts,
        tokenizer.name,
        tokenizer.vocab_size,
        tokenizer.beginning_of_document,
        facts["lost"],
        facts["fingerprint"],
        checksums=checksums,
    )


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"the token cache {folder} is damaged: {what}. Delete it; the next run makes a new one."
    )
