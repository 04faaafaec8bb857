"""Every baseline is trained, goes on, is scored and generates by the programs."""

import json

import pytest

from block_recurrent.runs.metrics import read_metrics
from experiments import evaluate, generate
from tests.helpers import slow
from tests.quick_runs import STEPS, make_inputs, run

FLAGS = {
    "transformer_xl": ["memory=5"],
    "lstm": ["hidden_size=5"],
}


@pytest.mark.parametrize("name", ["transformer_xl", *slow("lstm")])
def test_a_work_directory_of_a_baseline_serves_every_program(name, tmp_path, capsys):
    inputs, workdir = make_inputs(tmp_path), tmp_path / "run"
    options = [f"--gin.model.{flag}" for flag in (f"architecture={name}", *FLAGS[name])]
    assert run(inputs, workdir, *options, "--gin.training.num_steps=3") == 0
    assert run(inputs, workdir, *options) == 0
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert last["step"] == STEPS
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    figures = json.loads((workdir / "evaluation_validation.json").read_text(encoding="utf-8"))
    assert figures["nats"] == pytest.approx(last["validation/nats"], rel=1e-6)
    capsys.readouterr()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the quick brown", encoding="utf-8")
    options = [f"--prompt_file={prompt}", "--max_new_tokens=5"]
    assert generate.main([f"--workdir={workdir}", *options]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_another_model_in_the_same_work_directory_is_refused(tmp_path, capsys):
    inputs, workdir = make_inputs(tmp_path), tmp_path / "run"
    lstm = ["--gin.model.architecture=lstm", "--gin.model.hidden_size=5"]
    assert run(inputs, workdir, *lstm, "--gin.training.num_steps=1") == 0
    assert run(inputs, workdir) == 2
    difference = "model.architecture = 'lstm', now 'block_recurrent'"
    assert difference in capsys.readouterr().err
