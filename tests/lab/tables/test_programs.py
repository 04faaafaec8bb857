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


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_matplotlib_there_is_everything_but_the_picture(
    name, tmp_path, capsys, monkeypatch
):
    write_run(tmp_path / "a", paper("slide_13l"), [2.0])
    main = PROGRAMS[name].main
    with_picture, without = tmp_path / "with", tmp_path / "without"
    assert main([str(tmp_path / "a"), f"--output={with_picture}"]) == 0
    shown = capsys.readouterr().out.partition("written to")[0]
    for module in [module for module in sys.modules if module.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(tmp_path / "a"), f"--output={without}"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(shown)
    assert output.splitlines().count("no picture: pip install '.[plots]'") == 1
    assert sorted(path.name for path in without.iterdir()) == [f"{name}.json", f"{name}.md"]
    assert (without / f"{name}.json").read_text() == (with_picture / f"{name}.json").read_text()
    full, plain = ((f / f"{name}.md").read_text() for f in (with_picture, without))
    assert ".png" in full and ".png" not in plain
    assert plain.rstrip() == full.partition("![")[0].rstrip()
