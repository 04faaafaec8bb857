"""The manifest of a corpus: every document with its SHA-256, and what is not there and why."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.data.documents import SPLITS
from block_recurrent.lab.corpora.portions import Portion
from block_recurrent.lab.corpora.shards import final_name
from block_recurrent.system.text import count_reasons

FORMAT = 1


def make_manifest(
    settings: Mapping[str, Any], portions: Sequence[Portion], left_out: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the manifest, which tells the same of the same input on every machine.

    Its fields: format; name, source and options; splits, with documents, bytes of text and shards;
    skipped, left_out (reason -> number) and repaired; shards, with file, split, documents, size in
    bytes and SHA-256; dropped, with id, split and reason; documents, in the order of the shards,
    with id, split, bytes of text, SHA-256 of the text and shard.
    """
    documents, shards, dropped = [], [], []
    skipped: Counter[str] = Counter()
    for portion, file in zip(portions, shard_files(portions), strict=True):
        skipped.update(portion.skipped)
        kept = portion.kept()
        documents += [{**document, "split": portion.split, "shard": file} for document in kept]
        dropped += [{**d, "split": portion.split} for d in portion.read if "reason" in d]
        if portion.shard:
            shards.append(
                {
                    "file": file,
                    "split": portion.split,
                    "documents": len(kept),
                    "size": portion.shard.size,
                    "sha256": portion.shard.sha256,
                }
            )
    return {
        "format": FORMAT,
        **settings,
        "splits": {split: _totals(split, documents, shards) for split in SPLITS},
        "skipped": dict(sorted(skipped.items())),
        "left_out": dict(sorted(left_out.items())),
        "repaired": sum(portion.repaired for portion in portions),
        "shards": shards,
        "dropped": dropped,
        "documents": documents,
    }


def shard_files(portions: Sequence[Portion]) -> Iterator[str]:
    """Yields the final name of each portion's shard, "" where there is none."""
    numbers = Counter(portion.split for portion in portions if portion.shard)
    for portion in portions:
        yield final_name(portion.shard.file, numbers[portion.split]) if portion.shard else ""


def _totals(split: str, documents: Sequence[Any], shards: Sequence[Any]) -> dict[str, int]:
    sizes = [document["bytes"] for document in documents if document["split"] == split]
    files = sum(shard["split"] == split for shard in shards)
    return {"documents": len(sizes), "bytes": sum(sizes), "shards": files}


def write_manifest(manifest: Mapping[str, Any], file: Path) -> None:
    """Writes the manifest as JSON, a line for every item of its lists."""
    fields = [f"{json.dumps(name)}: {_pretty(value)}" for name, value in manifest.items()]
    file.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="ascii")


def _pretty(value: object) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n]"


def summary(manifest: Mapping[str, Any]) -> str:
    """Returns lines for people: what is there, what is not, and what deserves a look."""
    lines = [
        f"{split + ':':<12}{total['documents']:>10,} documents {total['bytes']:>18,} bytes"
        f"{total['shards']:>7,} shards"
        for split, total in manifest["splits"].items()
    ]
    reasons = Counter(document["reason"] for document in manifest["dropped"])
    lines.append(f"dropped documents: {count_reasons(reasons)}")
    lines.append(f"skipped parts of documents: {count_reasons(manifest['skipped'])}")
    lines.append(f"left out by the source: {count_reasons(manifest['left_out'])}")
    lines.append(f"repaired, with invalid bytes: {manifest['repaired']:,} documents")
    empty = [split for split, total in manifest["splits"].items() if not total["documents"]]
    if empty:
        lines.append(
            f"WARNING: no documents for {' and '.join(empty)}: raise --validation_percent and "
            "--test_percent if they are to be there, or add documents."
        )
    return "\n".join(lines)
