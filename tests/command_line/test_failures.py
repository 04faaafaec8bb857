"""Laws of failing programs: a known failure is a message and a status, others keep a traceback."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from block_recurrent import LanguageModel, gin_files
from block_recurrent.command_line import failures
from block_recurrent.command_line import generate as generate_program
from block_recurrent.command_line import main as command
from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.main import PROGRAMS
from block_recurrent.config import ConfigError
from block_recurrent.data import DataError, make_tokenizer
from block_recurrent.runs.errors import CheckpointError, SaveFailed, WorkdirInUse
from block_recurrent.runs.reading import RunError, SelectionError
from block_recurrent.runs.trained import TrainedModel
from block_recurrent.system.devices import DeviceMissing, check_device
from block_recurrent.system.extras import MissingPackage
from block_recurrent.system.signals import Stopped
from experiments import generate, table1, train
from tests import programs
from tests.synthetic_runs import exit_status, small, write_run

KNOWN = {
    ConfigError("it.gin:1: so"): 2,
    SelectionError("a is given twice"): 2,
    DataError("a.jsonl, line 2: so"): 3,
    CheckpointError("step 3 is damaged"): 4,
    SaveFailed("step 3 is not saved"): 4,
    WorkdirInUse("another process"): 4,
    RunError("metrics.jsonl:5: not JSON"): 4,
    FloatingPointError("loss (nan nats)"): 5,
    MemoryError("out of memory: so"): 6,
    DeviceMissing("not there"): 7,
    MissingPackage("needs x: pip install 'block_recurrent[data]'"): 2,
}
UNKNOWN = [KeyError("x"), ValueError("x"), RuntimeError("x"), AssertionError()]


def failing(error: BaseException):
    @reported
    def main(argv):
        assert "--debug" not in argv
        raise error

    return main


@pytest.mark.parametrize("error, status", KNOWN.items(), ids=lambda x: type(x).__name__)
def test_a_known_failure_is_one_message_and_a_status(error, status, capsys):
    assert failing(error)([]) == status
    output, said = capsys.readouterr()
    assert output == "" and said.endswith(f": error: {error}\n") and said.count("\n") == 1


@pytest.mark.parametrize("error", [*KNOWN, OSError(28, "full", "a")], ids=lambda x: str(x))
def test_debug_anywhere_shows_the_traceback(error, capsys):
    for words in (["--debug"], ["x", "--debug", "y"]):
        with pytest.raises(type(error)):
            failing(error)(words)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", UNKNOWN, ids=repr)
def test_an_unknown_failure_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        failing(error)([])


def test_an_error_of_the_system_names_the_file_and_the_way_to_the_traceback(capsys):
    assert failing(PermissionError(13, "Permission denied", "runs/x"))([]) == 1
    assert "error: runs/x: Permission denied (--debug " in capsys.readouterr().err


def test_a_stop_is_128_and_the_signal(capsys):
    assert failing(Stopped("SIGTERM"))([]) == 128 + signal.SIGTERM
    assert failing(KeyboardInterrupt())([]) == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("line", [*PROGRAMS, "prepare-data text"])
def test_every_program_reports_its_failures_and_its_help_shows_debug(line, capsys, monkeypatch):
    name, *kind = line.split()
    assert hasattr(
        importlib.import_module(f"block_recurrent.{PROGRAMS[name][0]}").main, "__wrapped__"
    )
    monkeypatch.setattr("sys.argv", [])
    assert exit_status(command.main, name, *kind, "--help") == 0
    help_text = capsys.readouterr().out
    assert re.search(r"^ +--debug +show the traceback of an error$", help_text, re.MULTILINE)


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(programs.PROGRAMS.parent)} | variables


def books(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        record = json.dumps({"id": split, "text": f"the text of {split}. " * 9})
        (folder / f"{split}.jsonl").write_text(record + "\n")
    return folder


def arguments(folder: Path, **values) -> list[str]:
    """The command line of a tiny training run."""
    tiny = {
        "model.num_layers": 1,
        "model.recurrent_layers": (),
        "model.model_size": 16,
        "model.num_heads": 2,
        "model.head_size": 8,
        "model.mlp_size": 16,
        "data.source": "jsonl",
        "data.path": str(books(folder / "books")),
    }
    bound = tiny | {name.replace("__", "."): value for name, value in values.items()}
    flags = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    return ["--gin_file=sizes/tiny.gin", f"--workdir={folder / 'run'}", *flags]


def test_a_device_that_is_not_there_is_status_7_and_changes_nothing(tmp_path):
    command = [sys.executable, str(programs.PROGRAMS / "train.py"), *arguments(tmp_path)]
    variables = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment(**variables), capture_output=True, text=True)
    assert ended.returncode == 7, ended.stderr
    assert "error: the device asked for (JAX_PLATFORMS='cuda') is not there" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no\nmore")]
)
def test_whatever_jax_says_of_a_missing_device_becomes_one_message(error, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(DeviceMissing) as caught:
        check_device()
    assert "JAX_PLATFORMS" in str(caught.value) and "\n" not in str(caught.value)


def test_devices_that_are_there_are_no_error():
    check_device()


def exhaust():
    """An allocation that no machine has room for."""
    return jnp.zeros((2**23, 2**23), jnp.float32)


def test_what_jax_raises_without_enough_memory_is_known(capsys):
    @reported
    def main(argv):
        exhaust()

    assert main([]) == 6
    assert ": error: out of memory: RESOURCE_EXHAUSTED: " in capsys.readouterr().err
    assert failing(MemoryError())([]) == 6
    assert capsys.readouterr().err.endswith(": error: out of memory\n")


def test_training_that_needs_too_much_names_what_would_need_less(tmp_path, capsys):
    """Caches of 2^48 bytes, more than a process can address."""
    sizes = {"data__batch_size": 2**16, "data__segment_length": 2**20, "model__window": 2**20}
    heads = {"model__num_heads": 2**7, "model__remat": "dots"}
    assert train.main(arguments(tmp_path, **sizes, **heads)) == 6
    said = capsys.readouterr().err
    assert "out of memory: RESOURCE_EXHAUSTED" in said and "Traceback" not in said
    for words in (
        "data.batch_size (now 65536)",
        "data.segment_length (now 1048576)",
        "model.remat = 'layer' (now 'dots')",
        "model.dtype = 'bfloat16' (now 'float32')",
        "--dry_run",
    ):
        assert words in said


def test_generation_that_needs_too_much_names_the_samples(tmp_path, capsys, monkeypatch):
    flags = [flag.removeprefix("--gin.") for flag in arguments(tmp_path) if "--gin." in flag]
    config = gin_files.load(["sizes/tiny.gin"], flags)
    (tmp_path / "config.gin").write_text(gin_files.to_gin(config))
    model = LanguageModel(config.model, rngs=nnx.Rngs(0))
    trained = TrainedModel(model, config, make_tokenizer(config.data), step=1)
    monkeypatch.setattr(generate_program, "load", lambda *_, **__: trained)
    (tmp_path / "prompt").write_text("x")
    words = [f"--workdir={tmp_path}", f"--prompt_file={tmp_path / 'prompt'}", f"--samples={10**13}"]
    assert generate.main(words) == 6
    assert "what needs less: --samples (now 10000000000000)" in capsys.readouterr().err


def test_other_errors_of_jax_are_left_alone():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), failures.knobs_named({}):
        raise jax.errors.JaxRuntimeError("INTERNAL: backend: out of order")


def test_a_damaged_run_is_status_4_and_no_run_is_status_2(tmp_path, capsys):
    folder = write_run(tmp_path / "run", small(), [3.0])
    assert table1.main([str(folder), str(folder)]) == 2
    assert "is given twice" in capsys.readouterr().err
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert table1.main([str(folder), f"--output={tmp_path / 'out'}"]) == 4
    assert "run/metrics.jsonl:3: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
