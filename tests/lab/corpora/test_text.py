"""Laws of text as raw data of a corpus; how it is read is the matter of `data/text_files.py`."""

import gzip

import pytest

from block_recurrent.data.documents import DataError
from block_recurrent.lab.corpora.entries import Unusable, listed
from block_recurrent.lab.corpora.text import Texts


def test_a_file_that_goes_away_is_left_out_by_reason(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    (entry,) = Texts([tmp_path]).entries()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(Unusable, match=r"unreadable \(No such file"):
        entry.read()


def test_a_record_without_text_is_left_out_by_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": null}\n{"id": "b", "text": "x"}\n')
    missing, present = Texts([tmp_path]).entries()
    with pytest.raises(Unusable, match="no text"):
        missing.read()
    assert present.read().text == "x"


def test_a_damaged_file_ends_where_the_damage_is(tmp_path):
    rows = b"".join(b'{"id": "%d", "text": "x"}\n' % number for number in range(3))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-4])
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "b", "text": "x"}\nno json\n{"id": "c"}\n')
    (tmp_path / "c.csv").write_text("id,text\nd,x\n")
    ids = ["0", "1", "2", "a.jsonl.gz", "b", "b.jsonl", "d"]
    source = Texts([tmp_path])
    for _ in range(2):
        assert [entry.id for entry in listed(source, skip_damaged=True)] == ids
    seen = []
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read: .* --skip_damaged"):
        seen += (entry.id for entry in listed(source))
    assert "b" not in seen
