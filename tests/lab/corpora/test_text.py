"""Laws of text as raw data of a corpus; how it is read is the matter of `data/text_files.py`."""

import pytest

from block_recurrent.lab.corpora.entries import Unusable
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
