"""What the programs that read work directories have in common."""

import sys
from pathlib import Path

import pytest

from experiments import curves, scaling, table1, table2
from tests.synthetic_runs import exit_status, paper, small, write_run

PROGRAMS = {"table1": table1, "table2": table2, "scaling": scaling, "curves": curves}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_over_all_folders_says_the_same_when_its_own_output_is_among_them(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # pictures take time
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"), paper("slide_13l"), [2.0])
    said = []
    for _ in range(2):
        folders = sorted(Path("runs").iterdir())
        assert exit_status(PROGRAMS[name].main, *folders) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out and said[0].err == ""
    assert said[1].err == f"left out: runs/{name} holds no run\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_any_run_a_program_ends_in_status_2(name, tmp_path, capsys):
    assert exit_status(PROGRAMS[name].main, tmp_path) == 2
    output, errors = capsys.readouterr()
    left_out, error = errors.splitlines()
    assert output == "" and left_out == f"left out: {tmp_path} holds no run"
    assert "error: " in error and "no run is left" in error


def test_a_folder_that_does_not_exist_is_refused_beside_runs(tmp_path, capsys):
    write_run(tmp_path / "run", small(), [3.0])
    missing = tmp_path / "none"
    assert exit_status(table1.main, tmp_path / "run", missing) == 2
    assert f"{missing} holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["/no/such/run"], ["--outptu=x", "."]], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_wrong_calls_end_in_status_2(name, arguments, capsys):
    assert exit_status(PROGRAMS[name].main, *arguments) == 2
    assert "error: " in capsys.readouterr().err
