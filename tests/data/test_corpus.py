"""Laws of loading: splits are disjoint, complete and repeatable; errors name the way out."""

import sysconfig

import pytest

from block_recurrent.data import Corpus, DataError, load_corpus


@pytest.fixture(scope="module")
def stdlib() -> dict[str, Corpus]:
    return {split: load_corpus("stdlib", split) for split in ("train", "validation")}


def test_stdlib_splits_are_disjoint_and_complete(stdlib):
    ids = {split: {document.id for document in stdlib[split].documents} for split in stdlib}
    assert ids["train"] and ids["validation"] and not ids["train"] & ids["validation"]
    everything = load_corpus("stdlib", "train", validation_percent=0).documents
    assert {document.id for document in everything} == ids["train"] | ids["validation"]


def test_stdlib_has_no_test_package_and_no_installed_package(stdlib):
    ids = {document.id for corpus in stdlib.values() for document in corpus.documents}
    assert {"json", "asyncio", "argparse"} <= ids
    assert not {"test", "tests", "numpy", "site-packages"} & ids


def test_same_call_gives_the_same_sorted_corpus(stdlib):
    assert load_corpus("stdlib", "validation") == stdlib["validation"]
    ids = [document.id for document in stdlib["train"].documents]
    assert ids == sorted(set(ids))


def test_given_path_replaces_the_running_library(stdlib):
    given = load_corpus("stdlib", "validation", path=sysconfig.get_path("stdlib"))
    assert given.documents == stdlib["validation"].documents


def test_site_packages_are_what_is_installed_for_this_interpreter(tmp_path, monkeypatch):
    for name in ("purelib", "platlib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_module.py").write_text("pass")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    corpus = load_corpus("site_packages", "train", validation_percent=0)
    assert [document.id for document in corpus.documents] == ["platlib_module", "purelib_module"]


def test_empty_documents_are_dropped_and_counted(tmp_path):
    for name, text in {"a": "", "b": " \n", "c": "é"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus("text", "train", path=tmp_path, validation_percent=0)
    assert [document.id for document in corpus.documents] == ["c.txt"]
    assert corpus.dropped == {"empty": 2}
    assert "dropped: 2 empty;" in corpus.account()


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("stdlb", "train"), {}, "source must be .* not 'stdlb' .did you mean 'stdlib'"),
        (("stdlib", "valid"), {}, "split must be .* not 'valid' .did you mean 'validation'"),
        (("jsonl", "train"), {}, "needs a path: give a file"),
        (("text", "train"), {}, "needs a path: give a file"),
        (("text", "train"), {"path": "/no/such/folder"}, "'/no/such/folder' does not exist"),
        (("text", "train"), {"path": ""}, "'' does not exist"),
        (("stdlib", "train"), {"validation_percent": 100}, "whole number from 0 to 99"),
        (("stdlib", "train"), {"validation_percent": 0.1}, "0.1 must be a whole number"),
        (("stdlib", "validation"), {"validation_percent": 0}, "set data.validation_percent = "),
    ],
)
def test_wrong_argument_is_an_error_with_the_way_out(arguments, options, sentence):
    with pytest.raises(DataError, match=sentence):
        load_corpus(*arguments, **options)


def test_empty_directory_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no documents"):
        load_corpus("text", "train", path=tmp_path)
