"""Laws of Hugging Face's data sets: as files are read, and nothing comes over the network."""

import json

import pytest

from block_recurrent.data import DataError
from block_recurrent.data.corpus import load_corpus
from block_recurrent.data.huggingface import HubDataset
from block_recurrent.data.records import Columns
from block_recurrent.data.text_files import Reading
from experiments import prepare_data

datasets = pytest.importorskip("datasets")
BOOKS = {"url": ["u0", "u1"], "short_book_title": ["A", "B"], "text": ["é\n", "b"]}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Hugging Face's folder in the home directory is not touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same books as a folder of Parquet files, and as `datasets` saves them."""
    folder = tmp_path_factory.mktemp("data")
    data = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(BOOKS),
            "test": datasets.Dataset.from_dict({name: ["t"] for name in BOOKS}),
        }
    )
    data.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    for split, rows in data.items():
        rows.to_parquet(folder / "parquet" / f"{split}-00000-of-00001.parquet")
    return [folder / "saved", folder / "parquet"]


def test_splits_layouts_and_texts_are_those_of_the_same_files(forms):
    files = load_corpus("text", "train", path=forms[1], reading=Reading(), validation_percent=0)
    for folder in forms:
        corpus = load_corpus("huggingface", "train", path=folder, validation_percent=0)
        assert corpus.documents == files.documents and len(corpus.documents) == 2
        assert "by the names" in corpus.decision
    named = load_corpus("huggingface", "test", path=folder, reading=Reading(Columns("text")))
    assert [document.id for document in named.documents] == ["t"]


def test_a_prepared_corpus_has_the_same_documents(forms, tmp_path, capsys):
    arguments = ["huggingface", str(forms[0]), f"--output={tmp_path / 'out'}"]
    assert prepare_data.main(arguments) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert {(d["id"], d["split"]) for d in manifest["documents"]} >= {("t", "test")}
    assert len(manifest["documents"]) == 3


def test_a_name_is_not_fetched_unasked(monkeypatch):
    def connect(*args, **kwargs):
        pytest.fail("something was fetched")

    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises(DataError, match=r"data\.download = 'cache' or 'stream'"):
        HubDataset("nobody/nothing:some")


def test_a_damaged_data_set_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=f"{tmp_path}.* cannot be read by `datasets`"):
        load_corpus("huggingface", "train", path=tmp_path)
