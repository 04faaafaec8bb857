"""The manifest of a corpus: every document with its SHA-256, and what is not there and why."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from block_recurrent.data.documents import SPLITS
from block_recurrent.preparation.batches import Batch
from block_recurrent.preparation.shards import final_name

FORMAT = 1


def make_manifest(
    settings: Mapping[str, Any], batches: Sequence[Batch], left_out: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the manifest, which tells the same of the same input on every machine.

    Its fields: format; name, source and options; splits, with documents, bytes of text and shards;
    skipped, left_out (reason -> number) and repaired; shards, with file, split, documents, size in
    bytes and SHA-256; dropped, with id, split and reason; documents, in the order of the shards,
    with id, split, bytes of text, SHA-256 of the text and shard.
    """
    documents, shards, dropped = [], [], []
    skipped: Counter[str] = Counter()
    for batch, file in zip(batches, shard_files(batches), strict=True):
        skipped.update(batch.skipped)
        kept = batch.kept()
        documents += [{**document, "split": batch.split, "shard": file} for document in kept]
        dropped += [{**d, "split": batch.split} for d in batch.read if "reason" in d]
        if batch.shard:
            shards.append(
                {
                    "file": file,
                    "split": batch.split,
                    "documents": len(kept),
                    "size": batch.shard.size,
                    "sha256": batch.shard.sha256,
                }
            )
    return {
        "format": FORMAT,
        **settings,
        "splits": {split: _totals(split, documents, shards) for split in SPLITS},
        "skipped": dict(sorted(skipped.items())),
        "left_out": dict(sorted(left_out.items())),
        "repaired": sum(batch.repaired for batch in batches),
        "shards": shards,
        "dropped": dropped,
        "documents": documents,
    }


def shard_files(batches: Sequence[Batch]) -> Iterator[str]:
    """Yields the final name of each batch's shard, "" where there is none."""
    numbers = Counter(batch.split for batch in batches if batch.shard)
    for batch in batches:
        yield final_name(batch.shard.file, numbers[batch.split]) if batch.shard else ""


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
    lines.append(f"dropped documents: {_counts(reasons)}")
    lines.append(f"skipped parts of documents: {_counts(manifest['skipped'])}")
    lines.append(f"left out by the source: {_counts(manifest['left_out'])}")
    lines.append(f"repaired, with invalid bytes: {manifest['repaired']:,} documents")
    empty = [split for split, total in manifest["splits"].items() if not total["documents"]]
    if empty:
        lines.append(
            f"WARNING: no documents for {' and '.join(empty)}: raise --validation_percent and "
            "--test_percent if they are to be there, or add documents."
        )
    return "\n".join(lines)


def _counts(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "none"
