"""The small table: rows are trained by processes of their own, and each only once."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from block_recurrent.lab.tables import train_table as parent
from block_recurrent.lab.tables.rows import small_table_rows
from experiments import train_table
from tests.quick_runs import write_corpus
from tests.soak.processes import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.num_layers": 2,
    "model.model_size": 8,
    "model.head_size": 4,
    "model.mlp_size": 8,
    "model.window": 4,
    "model.num_states": 4,
    "data.source": "jsonl",
    "data.segment_length": 16,
    "data.batch_size": 2,
    "training.num_steps": 3,
}
ROWS = ["XL:8", "Rec:fixed:skip"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("table") / "corpus")


def words(corpus, workdir, **changes):
    values = SMALL | {"data.path": str(corpus)} | changes
    return [*(f"--gin.{name}={value!r}" for name, value in values.items()), f"--workdir={workdir}"]


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def two_rows(monkeypatch):
    monkeypatch.setattr(
        parent,
        "small_table_rows",
        lambda base: [row for row in small_table_rows(base) if row.name in ROWS],
    )


def test_rows_are_trained_side_by_side_and_once(corpus, two_rows, tmp_path, capsys, monkeypatch):
    line = [*words(corpus, tmp_path), "--at_once=2"]
    assert train_table.main(line) == 0
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "table.json").read_text())["results"]
    assert [result["row"] for result in results] == ROWS
    assert re.findall(r"^\[\d/2\] (\S+): [\d.]+ bits/byte", first, re.MULTILINE) != []
    assert (tmp_path / "table.md").read_text().count("\n| ") >= 5

    monkeypatch.setattr(parent, "run_side_by_side", lambda commands, *rest: iter(commands))
    assert train_table.main(line) == 0
    table = [
        text.split("written to")[0].partition("\nrow ")[2]
        for text in (first, capsys.readouterr().out)
    ]
    assert table[0] and table[0] == table[1]


def test_rows_that_fail_say_why_and_keep_no_other_from_being_trained(
    corpus, two_rows, tmp_path, capsys
):
    line = words(corpus, tmp_path, **{"optimizer.learning_rate": 1e30})
    assert train_table.main([*line, "--at_once=1"]) == 5
    said = capsys.readouterr().err
    for title in ("[1/2] XL:8", "[2/2] Rec:fixed:skip"):
        assert f"{title} | block-recurrent table: error: loss" in said
    assert "XL:8 ended with status 5" in said


def test_a_stop_saves_every_row_and_another_call_goes_on(corpus, tmp_path):
    line = words(corpus, tmp_path, **{"training.num_steps": 10**6, "training.log_every": 1})
    program = [sys.executable, ROOT / "experiments/train_table.py", *line, "--at_once=1"]
    table = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    assert table.stderr is not None
    for text in table.stderr:
        if re.search(r" step \d", text):
            table.send_signal(signal.SIGTERM)
            break
    _, said = table.communicate(timeout=60)
    assert table.returncode == 128 + signal.SIGTERM
    assert re.search(r"LSTM.*is saved", said)
    assert len(os.listdir(tmp_path / "LSTM/checkpoints")) == 1


def test_a_row_that_there_is_not_is_named(tmp_path, capsys):
    assert train_table.main([f"--workdir={tmp_path}", "--row=Rec:fixed:skp"]) == 2
    assert (
        "there is no row 'Rec:fixed:skp' (did you mean 'Rec:fixed:skip'?)"
        in capsys.readouterr().err
    )
