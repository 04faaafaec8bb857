"""What people type: it means what they mean, and no console ends in a traceback."""

import os
import subprocess
import sys

import pytest

from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.gin_files import PARAMETERS, describe_parameters
from experiments import train
from tests.helpers import slow
from tests.interpreter import settings
from tests.quick_runs import make_inputs

TINY = "--gin_file=sizes/tiny.gin"


def parsed(*words: str, option: str = "--workdir"):
    parser = make_parser("A program.")
    parser.add_argument(option)
    return parse(parser, [TINY, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--gin_bindings=model.gate='lstm'"],
        ['--gin_bindings=model.gate = "lstm"'],
        ["--gin_bindings", "model.gate = 'lstm'\n model.wiring='single'"],
        ["--gin.model.gate=fixed", "--gin_bindings=model.gate='lstm'"],
    ],
)
def test_bindings_may_be_written_as_gin_programs_take_them(words):
    assert parsed(*words)[1].model.gate == "lstm"


def test_of_an_option_given_several_times_the_last_counts_and_it_is_said(caplog):
    arguments, config = parsed(
        *("--workdir=a", "--gin.data.seed=1", "--workdir=b", "--gin.data.seed=2")
    )
    assert (arguments.workdir, config.data.seed) == ("b", 2)
    sentence = "{} is given several times: the last counts"
    assert [record.getMessage() for record in caplog.records] == [
        sentence.format("--workdir"),
        sentence.format("--gin.data.seed"),
    ]


def test_the_home_directory_and_folders_called_by_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.gin").write_text("data.seed = 7\n")
    text = "--gin.data.source=text"
    _, config = parsed(text, "--gin.data.path=~/2023", "--gin_file=~/own.gin")
    assert (config.data.path, config.data.seed) == (str(tmp_path / "2023"), 7)
    assert parsed(text, "--gin.data.path=2023")[1].data.path == "2023"
    assert parsed(text, "--gin.data.path=books", "--gin.data.name=None")[1].data.name is None


def test_help_has_every_parameter_with_its_type_default_and_meaning():
    lines = describe_parameters().splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [head.partition(":")[0] for head in heads] == list(PARAMETERS)
    assert all(": " in head and (", default " in head or ", required" in head) for head in heads)
    assert all(lines[lines.index(head) + 1].startswith("    ") for head in heads)


SCRIPTS = [
    "{} --dry_run | true; exit ${{PIPESTATUS[0]}}",
    "PYTHONIOENCODING=ascii {} --dry_run --gin.data.name=é",
    *slow("{} --dry_run >&-", "{} --dry_run 2>&-", "{} --dry_run <&-"),
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_console_ends_in_a_traceback(script, tmp_path):
    inputs = make_inputs(tmp_path)
    program = f"{sys.executable} {train.__file__} --gin_file={inputs / 'tiny.gin'}"
    ended = subprocess.run(
        ["bash", "-c", script.format(program)], env=settings(), capture_output=True, text=True
    )
    assert ended.returncode in (0, 141) and "Traceback" not in ended.stderr, ended
    assert "Error" not in ended.stderr and os.path.exists(inputs)
