"""Laws of splits: names of files and folders decide, what is not clear is refused."""

import json
from pathlib import Path, PurePath

import pytest

from block_recurrent.data import DataError, load_corpus
from block_recurrent.data.documents import SPLITS
from block_recurrent.data.splits import choose_split, decide_splits
from block_recurrent.data.text_files import Reading
from experiments import prepare_data

TRAIN, VALIDATION, TEST = ("train",), ("validation",), ("test",)


def decide(*names: str, split_by: str = "names") -> list[tuple[str, ...]]:
    return decide_splits([PurePath(name) for name in names], split_by).among


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The Pile, SlimPajama, WikiText-103, C4, Hugging Face, speech corpora.
        (("train/00.jsonl", "val.jsonl.zst", "test.jsonl.zst"), (TRAIN, VALIDATION, TEST)),
        (
            (
                "train/chunk1/example_train_0.jsonl",
                "validation/chunk1/example_holdout_0.jsonl",
                "test/chunk1/example_holdout_0.jsonl",
            ),
            (TRAIN, VALIDATION, TEST),
        ),
        (("train.txt", "valid.txt", "test.txt"), (TRAIN, VALIDATION, TEST)),
        (("wiki.train.json", "wiki.valid.json", "wiki.test.json"), (TRAIN, VALIDATION, TEST)),
        (("c4-train.00000-of-01024.json.gz", "c4-validation.0.json"), (TRAIN, VALIDATION)),
        (("data/train-00000-of-00002.parquet", "data/dev.parquet"), (TRAIN, VALIDATION)),
        (("train-clean-100/a.txt", "dev-clean/a.txt"), (TRAIN, VALIDATION)),
        (("Training/a.txt", "VAL/a.txt", "Holdout/b.txt"), (TRAIN, VALIDATION, VALIDATION)),
        # "eval" is for validation, unless there is another one.
        (("train.csv", "eval.csv"), (TRAIN, VALIDATION)),
        (("train.csv", "dev.csv", "eval.csv"), (TRAIN, VALIDATION, TEST)),
        # Without validation, train is shared; the test split stays what it is.
        (("train.csv", "test.csv"), (("train", "validation"), TEST)),
        # Nothing is held out by name.
        (("train-0.csv", "train-1.csv"), (SPLITS, SPLITS)),
        (("books/a.txt", "contest.txt", "development.txt"), (SPLITS, SPLITS, SPLITS)),
        ((), ()),
    ],
)
def test_names_tell_the_split(names, expected):
    assert decide(*names) == list(expected)
    assert decide(*names, split_by="hash") == [SPLITS] * len(names)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("train.txt", "a.txt", "b.txt"), r"a\.txt, b\.txt not: put every file into a folder"),
        (("val.txt", *(f"{n}.txt" for n in range(7))), r"3\.txt, 4\.txt and 2 more not"),
        (("train_test.txt",), "called after several splits, test and train: rename it"),
        (("train/val/a.txt",), "called after several splits, train and validation"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_way_out(names, sentence):
    with pytest.raises(DataError, match=f"{sentence}.*split_by"):
        decide(*names)


def test_documents_of_shared_files_are_split_by_their_id():
    ids = [f"d{number}" for number in range(400)]
    assert {choose_split(one, TEST, 50) for one in ids} == {"test"}
    assert {choose_split(one, ("train", "validation"), 30, 30) for one in ids} == {
        "train",
        "validation",
    }
    assert {choose_split(one, SPLITS, 30, 30) for one in ids} == set(SPLITS)


def write_layout(folder: Path) -> dict[str, set[str]]:
    """The Pile's layout; returns the ids of each split."""
    files = {"train/00.jsonl": "train", "train/01.jsonl": "train"}
    files |= {"val.jsonl": "validation", "test.jsonl": "test"}
    ids: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name, split in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        found = [f"{name}{number}" for number in range(20)]
        ids[split].update(found)
        lines = (json.dumps({"id": one, "text": f"text of {one}"}) + "\n" for one in found)
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return ids


def test_both_programs_hold_out_the_same(tmp_path, capsys):
    expected = write_layout(tmp_path / "raw")
    assert prepare_data.main(["text", str(tmp_path / "raw"), f"--output={tmp_path / 'out'}"]) == 0
    decided = "splits: by the names of files and folders (train 2, validation 1, test 1 files)"
    assert decided in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert manifest["decision"] == decided
    for split, ids in expected.items():
        prepared = {d["id"] for d in manifest["documents"] if d["split"] == split}
        direct = load_corpus("text", split, path=tmp_path / "raw")
        assert prepared == {document.id for document in direct.documents} == ids
        assert decided in direct.account()


def test_what_no_file_is_for_is_an_error_that_says_so(tmp_path):
    (tmp_path / "test.txt").write_text("held out", encoding="utf-8")
    assert len(load_corpus("text", "test", path=tmp_path).documents) == 1
    with pytest.raises(DataError, match=r"by the names of .*\(test 1 files\).*split_by"):
        load_corpus("text", "train", path=tmp_path)
    by_hash = Reading(split_by="hash")
    assert load_corpus("text", "train", path=tmp_path, validation_percent=0, reading=by_hash)
