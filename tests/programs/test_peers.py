"""The comparison with other code, without the other code."""

import json
import sys

import pytest

from experiments.peers import compare
from tests.helpers import SIZES
from tests.interpreter import settings

SIZE = [f"--gin.model.{name}={value}" for name, value in SIZES.items()]
SIZE += ["--gin.model.num_layers=3", "--gin.data.batch_size=2"]
SIZE += [f"--gin.data.segment_length={2 * SIZES['window']}"]


@pytest.mark.slow
def test_a_codebase_beside_itself(tmp_path, monkeypatch, capsys):
    command = [sys.executable, compare.FOLDER / "ours.py"]
    monkeypatch.setattr(compare, "commands", lambda _: {compare.OURS: command, "other": command})
    for name, value in settings().items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "figures.json"
    assert compare.main([*SIZE, "--rounds=2", f"--json={path}"]) == 0
    figures = json.loads(path.read_text())
    assert [len(taken) for taken in figures["steps"].values()] == [2, 2]
    ours, other = figures["codebases"].values()
    assert ours["ratio"] == 1 and other["ratio"] > 0
    assert ours["step_flops"] == other["step_flops"] > 0
    assert all(row["share_of_matmul"] > 0 for row in (ours, other))
    assert "other" in capsys.readouterr().out


def test_a_codebase_that_ends_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("raise SystemExit(7)")
    with pytest.raises(ValueError, match=r"broken\.py ended with status 7"):
        compare.take_turns({"broken": [sys.executable, path]}, {}, rounds=1)


def test_a_folder_without_the_authors_code_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main([f"--meliad={tmp_path}"])
    assert caught.value.code == 2 and "no clone" in capsys.readouterr().err
