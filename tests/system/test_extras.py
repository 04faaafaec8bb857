"""Laws of optional packages: they are there, or a sentence says how to install them."""

import json
import sys

import pytest

from block_recurrent.system.extras import MissingPackage, require
from experiments import prepare_data


def test_a_module_that_is_there_is_returned():
    assert require("json", extra="data") is json


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingPackage, match=r"^needs not_there: pip install '.*\[plots\]'$"):
        require("not_there.part", extra="plots")


def test_a_program_says_what_it_needs_and_ends_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").touch()
    assert prepare_data.main(["text", str(tmp_path), f"--output={tmp_path / 'out'}"]) == 2
    assert "error: needs pyarrow: pip install 'block_recurrent[data]'\n" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
