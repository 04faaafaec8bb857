"""The small table: rows are trained by processes of their own, and each only once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from block_recurrent.lab.tables import train_table as parent
from block_recurrent.lab.tables.rows import small_table_rows
from block_recurrent.runs.metrics import read_metrics
from experiments import train_table
from tests.quick_runs import write_corpus
from tests.soak.processes import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.vocab_size": 289,
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
    "training.trackers": (),
}
ROWS = ["XL:16", "Rec:fixed:skip"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("table") / "corpus")


def words(corpus, workdir, **changes):
    values = SMALL | {"data.path": str(corpus)} | changes
    bound = [f"--gin.{name}={value!r}" for name, value in values.items()]
    return [*bound, f"--workdir={workdir}"]


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def two_rows(monkeypatch):
    monkeypatch.setattr(
        parent,
        "small_table_rows",
        lambda base, **options: [
            row for row in small_table_rows(base, **options) if row.name in ROWS
        ],
    )


def test_rows_are_trained_side_by_side_and_once(corpus, two_rows, tmp_path, capsys, monkeypatch):
    line = [*words(corpus, tmp_path), "--at_once=2"]
    assert train_table.main(line) == 0
    first, progress = capsys.readouterr()
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ROWS
    ended = re.findall(r"^(\S+): [\d.]+ bits/byte, step time [\d.]+", progress, re.MULTILINE)
    assert sorted(ended) == sorted(ROWS)
    assert (tmp_path / "table.md").read_text().count("\n| ") == 4

    monkeypatch.setattr(parent, "run_side_by_side", lambda commands, *rest: iter(commands))
    assert train_table.main(line) == 0
    table = [
        text.split("written to")[0].partition("\nrow ")[2]
        for text in (first, capsys.readouterr().out)
    ]
    assert table[0] and table[0] == table[1]


@pytest.mark.slow
def test_rows_that_fail_say_why_and_keep_no_other_from_being_trained(
    corpus, two_rows, tmp_path, capsys
):
    line = words(corpus, tmp_path, **{"optimizer.learning_rate": 1e30})
    assert train_table.main([*line, "--at_once=1"]) == 5
    said = capsys.readouterr().err
    for title in ROWS:
        assert f"{title} | block-recurrent table: error: loss" in said
    assert "XL:16 ended with status 5" in said


def test_a_stop_saves_every_row_and_another_call_goes_on(corpus, tmp_path):
    line = words(corpus, tmp_path, **{"training.num_steps": 10**6, "training.log_every": 1})
    program = [sys.executable, ROOT / "experiments/train_table.py", *line, "--at_once=1"]
    table = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "XL-4/seed_0"
    while not read_metrics(run / "metrics.jsonl") and table.poll() is None:
        time.sleep(0.05)
    table.send_signal(signal.SIGTERM)
    _, said = table.communicate(timeout=60)
    assert table.returncode == 128 + signal.SIGTERM
    assert re.search(r"XL:4 \| stopped by SIGTERM: step \S+ is saved", said)
    assert len(os.listdir(run / "checkpoints")) == 1


def test_a_row_that_there_is_not_is_named(tmp_path, capsys):
    assert train_table.main([f"--workdir={tmp_path}", "--row=Rec:fixed:skp"]) == 2
    assert (
        "there is no row 'Rec:fixed:skp' (did you mean 'Rec:fixed:skip'?)"
        in capsys.readouterr().err
    )
