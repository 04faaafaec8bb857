"""Laws of reading a prepared directory: all of it or an error that names the shard."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from block_recurrent.data import DataError
from block_recurrent.data.documents import Document
from block_recurrent.data.records import Columns
from block_recurrent.data.tfds_reader import TfdsDirectory

SHARD = "pg19-train.array_record-00000-of-00002"
RANDOM = np.random.default_rng(0)
BOOKS = [
    {
        "book_id": number,
        "book_link": f"http://books/{number}",
        "book_text": f"book {number} é " + RANDOM.bytes(15_000).hex(),
        "book_title": f"Title {number}, or: A Name",
        "publication_date": str(1800 + number),
    }
    for number in range(12)
]
TYPES = {
    "book_id": np.int32,
    "book_link": np.str_,
    "book_text": tfds.features.Text(),
    "book_title": np.str_,
    "publication_date": np.str_,
}


def write(path: Path, shards: dict[str, list[list[dict]]], types=TYPES) -> Path:
    """A data set as tensorflow-datasets writes it."""
    path.mkdir(parents=True)
    features = tfds.features.FeaturesDict(types)
    serializer = ExampleSerializer(features.get_serialized_info())
    identity = tfds.core.DatasetIdentity("pg19", tfds.core.Version("0.1.1"), str(path), "m")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name="pg19", data_dir=str(path), filetype_suffix="array_record"
    )
    splits = []
    for split, parts in shards.items():
        named = template.replace(split=split)
        for index, part in enumerate(parts):
            file = named.sharded_filepath(shard_index=index, num_shards=len(parts))
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for example in part:
                writer.write(serializer.serialize_example(features.encode_example(example)))
            writer.close()
        lengths = [len(part) for part in parts]
        splits.append(tfds.core.SplitInfo(split, lengths, 1, filename_template=named))
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds") / "0.1.1"
    return write(folder, {"train": [BOOKS[:8], BOOKS[8:10]], "test": [BOOKS[10:]]})


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def with_manifest(path: Path) -> Path:
    """Adds a manifest that agrees with the directory."""
    documents = [
        {"id": document.id, "sha256": hashlib.sha256(document.text.encode()).hexdigest()}
        for split in ("train", "test")
        for document in TfdsDirectory(path).documents(split)
    ]
    names = [SHARD] * 8 + [SHARD.replace("0-of", "1-of")] * 2
    names += ["pg19-test.array_record-00000-of-00001"] * 2
    for document, name in zip(documents, names, strict=True):
        document["shard"] = name
    (path / "manifest.json").write_text(json.dumps({"documents": documents}), encoding="utf-8")
    return path


def read(path: Path, split: str = "train") -> list[Document]:
    return list(TfdsDirectory(path).documents(split))


def test_documents_come_as_they_were_written_split_by_split(made):
    directory = TfdsDirectory(made)
    assert (directory.name, directory.splits) == ("pg19", {"train": 10, "test": 2})
    expected = [Document(str(b["book_id"]), b["book_title"], b["book_text"]) for b in BOOKS]
    assert read(made) == expected[:10]
    assert read(made, "test") == expected[10:]


def test_the_source_names_a_document_where_there_is_one(tmp_path):
    types = {"source": tfds.features.Text(), "text": tfds.features.Text()}
    path = write(tmp_path / "a", {"train": [[{"source": "é/x", "text": b"a\xffb"}]]}, types)
    assert read(path) == [Document("é/x", "", "a\N{REPLACEMENT CHARACTER}b")]


def test_features_may_be_called_otherwise_and_a_record_without_an_id_is_numbered(tmp_path):
    types = {"wikidata_id": tfds.features.Text(), "body": tfds.features.Text()}
    records = [{"wikidata_id": f"Q{number}", "body": f"b{number}"} for number in range(2)]
    path = write(tmp_path / "a", {"train": [records]}, types)
    with pytest.raises(DataError, match="no feature 'text', only body, wikidata_id.*text_column"):
        TfdsDirectory(path)
    numbered = TfdsDirectory(path, Columns(text="body"))
    ids = [document.id for document in numbered.documents("train")]
    assert ids == [f"pg19-train.array_record-00000-of-00001, record {n}" for n in range(2)]
    named = TfdsDirectory(path, Columns("wikidata_id", "body", "wikidata_id"))
    assert list(named.documents("train")) == [Document(f"Q{n}", f"Q{n}", f"b{n}") for n in range(2)]
    assert named.fingerprint != numbered.fingerprint


def test_a_manifest_says_what_the_features_are(made, copy):
    with pytest.raises(DataError, match=r"has a manifest.*leave data\.id_column"):
        TfdsDirectory(with_manifest(copy), Columns("book_link"))
    features = copy / "features.json"
    features.write_text(features.read_text().replace("book_title", "book_tilte"))
    with pytest.raises(DataError, match=r"features\.json has no book_title: it is damaged"):
        TfdsDirectory(copy)


@pytest.mark.parametrize("size", [0, 100, 65_535, 65_536, 65_537, 131_072, -1])
def test_a_shard_cut_anywhere_is_an_error(copy, size):
    data = (copy / SHARD).read_bytes()
    assert len(data) > 131_072
    (copy / SHARD).write_bytes(data[:size])
    with pytest.raises(DataError, match=f"{SHARD}, record 0: the shard holds 0 readable"):
        read(copy)
    assert len(read(copy, "test")) == 2


def test_at_64_kib_tensorflow_datasets_gives_records_of_none(copy):
    (copy / SHARD).write_bytes((copy / SHARD).read_bytes()[:65_536])
    silent = tfds.builder_from_directory(str(copy)).as_data_source("train")
    assert silent[0]["book_text"] is None


def test_a_flipped_bit_is_an_error_or_changes_nothing(copy):
    data, expected, damaged = (copy / SHARD).read_bytes(), read(copy), 0
    for position in range(50, len(data), len(data) // 60):
        changed = bytearray(data)
        changed[position] ^= 8
        (copy / SHARD).write_bytes(changed)
        try:
            assert read(copy) == expected
        except DataError as error:
            damaged += 1
            assert SHARD in str(error) and "record" in str(error)
    assert damaged > 20


def test_a_missing_shard_is_an_error_before_the_first_document(copy):
    (copy / SHARD.replace("00000-of", "00001-of")).unlink()
    with pytest.raises(DataError, match="00001-of-00002 is missing"):
        TfdsDirectory(copy).documents("train")


@pytest.mark.parametrize("count", ["7", "9"])
def test_the_number_of_records_must_be_that_of_the_description(copy, count):
    info = copy / "dataset_info.json"
    info.write_text(info.read_text(encoding="utf-8").replace('"8"', f'"{count}"'), encoding="utf-8")
    with pytest.raises(DataError, match=f"{SHARD}, record {min(int(count), 8)}: .* says {count}"):
        read(copy)


def test_with_a_manifest_every_text_is_checked(copy):
    expected = read(copy)
    assert read(with_manifest(copy)) == expected
    file = copy / "manifest.json"
    whole = file.read_text(encoding="utf-8")
    sha256 = hashlib.sha256(expected[3].text.encode()).hexdigest()
    for old, new, message in [
        (sha256, "0" * 64, f"{SHARD}, record 3: '3' or its text is not what"),
        ('"id": "3"', '"id": "33"', f"{SHARD}, record 3: '3' .* lists as '33'"),
        (SHARD, "other", f"{SHARD}: manifest.json lists 0 documents and dataset_info.json 8"),
        ('"sha256"', '"sha"', "manifest.json is damaged"),
        ("{", "", "manifest.json is damaged"),
    ]:
        file.write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read(copy)


def test_the_fingerprint_is_of_the_content_not_of_the_place(made, copy):
    before = TfdsDirectory(made).fingerprint
    assert TfdsDirectory(copy).fingerprint == before
    with (copy / SHARD).open("ab") as file:
        file.write(b"x")
    assert TfdsDirectory(copy).fingerprint != before
    shutil.copy(made / SHARD, copy)
    listed = TfdsDirectory(with_manifest(copy)).fingerprint
    manifest = copy / "manifest.json"
    assert listed == hashlib.sha256(manifest.read_bytes()).hexdigest() != before


def test_what_is_no_such_directory_is_refused_with_a_way_out(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in [
        (tmp_path / "none", "none is not a directory: give the one that holds dataset_info.json"),
        (
            tmp_path / "empty",
            "no dataset_info.json: give one that `block-recurrent prepare-data` or",
        ),
        (tmp_path, f"holds no dataset_info.json: give {copy}"),
    ]:
        with pytest.raises(DataError, match=message):
            TfdsDirectory(path)
    info = (copy / "dataset_info.json").read_text(encoding="utf-8")
    for text, message in [
        (info.replace("array_record", "tfrecord"), "tfrecord files: only array_record can be read"),
        (info[:50], "dataset_info.json is damaged"),
        ("[]", "dataset_info.json is damaged"),
        ('{"fileFormat": "array_record", "x": 1}', "dataset_info.json or features.json is damaged"),
        (info.replace("{SPLIT}", "{{SPLIT}"), "dataset_info.json is damaged"),
        (info.replace("{DATASET}", "../../{DATASET}"), "/pg19-.*, outside of its directory"),
    ]:
        (copy / "dataset_info.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            TfdsDirectory(copy)


def test_features_that_hold_no_named_text_are_refused(tmp_path):
    types = {"book_id": np.int32, "label": np.int32}
    path = write(tmp_path / "a", {"train": [[{"book_id": 1, "label": 1}]]}, types)
    with pytest.raises(DataError, match="no feature 'text', only book_id, label.*text_column"):
        TfdsDirectory(path)


def test_an_unknown_split_is_told_the_nearest(made):
    with pytest.raises(DataError, match="split must be .* not 'tran' .did you mean 'train'"):
        TfdsDirectory(made).documents("tran")


def test_nothing_imports_tensorflow_and_nothing_warns(made):
    program = (
        "import sys\nfrom block_recurrent.data.tfds_reader import TfdsDirectory\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"assert len(list(TfdsDirectory({str(made)!r}).documents('train'))) == 10\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_no_module_is_imported_because_a_file_names_it(key, copy, tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((copy / "features.json").read_text())
    inner = next(value for value in features.values() if isinstance(value, dict))
    inner["features"]["book_text"] = {key: "hostile_module.Text", "content": {}}
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(DataError, match=r"features\.json names 'hostile_module\.Text'"):
        TfdsDirectory(copy)
