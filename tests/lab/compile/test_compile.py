"""Laws of compiling for accelerators that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from block_recurrent.config import ConfigError
from block_recurrent.gin_files import load
from block_recurrent.lab.compile import compile as program
from block_recurrent.lab.compile import target
from block_recurrent.lab.compile.costs import LINES
from block_recurrent.lab.compile.target import CHIPS, is_installed
from block_recurrent.model.parameters import count_parameters
from block_recurrent.training import estimate
from block_recurrent.training.build import abstract_train_state
from tests.programs import PROGRAMS

TINY = ["sizes/tiny.gin", "rows/rec_fixed_skip.gin"]
SMALLER = {
    "model.num_layers": 3,
    "model.recurrent_layers": (1,),
    "data.segment_length": 256,
    "data.batch_size": 4,
}
NARROW = {
    "model.num_layers": 1,
    "model.recurrent_layers": (0,),
    "model.model_size": 16,
    "model.window": 16,
    "model.num_states": 4,
    "data.segment_length": 32,
}
KEYS = {"fits", "peak_bytes", "cycles", "seconds", "share_of_peak", "collectives"}
COMPILERS = {"tpu": ("v5e:2x2", "libtpu"), "cuda": ("h100:2", "jax_plugins.xla_cuda13")}


def tiny(**changes):
    bindings = [f"{name}={value!r}" for name, value in (SMALLER | changes).items()]
    return load(TINY, bindings, needs_data=False)


def options(changes: dict) -> list[str]:
    """On the command line, of a tiny run."""
    files = [f"--gin_file={name}" for name in TINY]
    return [*files, *(f"--gin.{name}={value!r}" for name, value in (SMALLER | changes).items())]


def run(topology: str, output: Path, **changes) -> subprocess.CompletedProcess:
    """The program as a process of its own: compilers are kept apart from the other tests."""
    command = [sys.executable, str(PROGRAMS / "compile.py"), f"--topology={topology}"]
    command += [*options(changes), f"--json={output}"]
    # The tests' own flags are for a CPU; other compilers do not know them.
    environment = os.environ | {"PYTHONPATH": str(PROGRAMS.parent), "XLA_FLAGS": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module", params=COMPILERS)
def compiled(request, tmp_path_factory):
    """What the program prints, and its figures, for each compiler that is installed."""
    topology, plugin = COMPILERS[request.param]
    if not is_installed(plugin):
        pytest.skip(f"the extra '{request.param}' is not installed ({plugin})")
    output = tmp_path_factory.mktemp(request.param) / "figures.json"
    ended = run(topology, output)
    assert ended.returncode == 0, ended.stderr
    return request.param, ended.stdout, json.loads(output.read_text())


def test_a_step_is_compiled_without_the_hardware(compiled):
    _, text, figures = compiled
    assert set(figures) >= KEYS
    assert figures["fits"] is True and 0 < figures["peak_bytes"] < figures["memory_bytes"]
    assert figures["devices"] == len(target.make_target(figures["topology"]).devices)
    assert figures["collectives"]["all-reduce"]["count"] > 0
    assert figures["unknown_loops"] == []
    assert figures["topology"] in text and "fits" in text and "all-reduce" in text


def test_time_is_from_cycles_on_a_tpu_and_from_kernels_on_a_gpu(compiled):
    platform, text, figures = compiled
    if platform == "cuda":
        assert figures["cycles"] is None and "at least: products at the peak" in text
        assert figures["product_flops"] > figures["flops"] / 2  # of both devices
    else:
        assert figures["seconds"] == pytest.approx(figures["cycles"] / 1.5e9)
        assert figures["kernels"] and figures["unknown_kernels"] == []
        assert all(kernel["cycles"] > 0 for kernel in figures["kernels"])
    assert 0 < figures["share_of_peak"] < 1
    assert len(figures["places"]) == LINES
    assert any(found["place"].startswith("model/attention/") for found in figures["places"])


def test_every_gradient_goes_round_once_a_step_in_float32(compiled):
    platform, _, figures = compiled
    if platform != "tpu":
        pytest.skip("only a TPU's compiler says so")
    parameters = abstract_train_state(tiny()).model
    expected = 4 * count_parameters(parameters)
    assert figures["collectives"]["all-reduce"]["bytes"] == pytest.approx(expected, rel=0.01)


def test_a_step_that_does_not_fit_ends_with_status_6(tmp_path):
    if not is_installed("libtpu"):
        pytest.skip("the extra 'tpu' is not installed (libtpu)")
    output = tmp_path / "figures.json"
    ended = run("v5e:2x2", output, **{"data.segment_length": 2**17, "data.batch_size": 64})
    assert ended.returncode == 6, ended.stderr
    assert "Traceback" not in ended.stderr and "out of memory: " in ended.stderr
    assert "data.batch_size (now 64)" in ended.stderr
    figures = json.loads(output.read_text())
    assert figures["fits"] is False and set(figures) >= KEYS


WRONG = {
    "v5e": "write a chip and how many, such as v5e:2x2",
    "v5x:2x2": "no chip is called 'v5x' (did you mean 'v5",
    "h100:": "write a chip and how many",
}


@pytest.mark.parametrize("topology", WRONG)
def test_a_wrong_topology_is_an_error(topology):
    with pytest.raises(ConfigError) as caught:
        target.make_target(topology)
    message = str(caught.value)
    assert f"--topology={topology}: " in message and WRONG[topology] in message
    assert "v5p" in message and "h100" in message


@pytest.mark.parametrize("topology", ["v5e:3x5", "h100:2x2x2x2"])
def test_a_topology_that_the_compiler_does_not_know_is_an_error(topology):
    platform = CHIPS[topology.partition(":")[0]].platform
    if not is_installed(COMPILERS[platform][1]):
        pytest.skip(f"the extra '{platform}' is not installed")
    with pytest.raises(ConfigError, match="the compiler does not know it .*v5e:2x2"):
        target.make_target(topology)


@pytest.mark.parametrize("topology, extra", [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_a_compiler_that_is_not_installed_is_an_error(topology, extra, monkeypatch):
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install 'jax.{extra}.*with the extra '{extra}'"):
        target.make_target(topology)


def fake(name: str = "v5e", devices: int = 1) -> target.Target:
    """This machine's devices under another name."""
    return target.Target(f"{name}:{devices}", CHIPS[name], [*jax.devices()[:1]] * devices)


def test_lanes_that_cannot_be_shared_out_are_an_error():
    with pytest.raises(
        ConfigError, match="a batch of 4 rows cannot be sharded evenly over 3 groups of devices"
    ):
        program.compile_step(tiny(), fake(devices=3))


@pytest.mark.parametrize(
    ("chip", "memory", "choice"),
    [("v5e", 40, "none"), ("v5e", 25, "dots"), ("h100", 40, "dots"), ("v5e", 20, "layer")],
)
def test_automatic_rematerialisation_is_what_a_run_would_choose(monkeypatch, chip, memory, choice):
    def compiled(config, target):
        needed = {"none": 30, "dots": 20, "layer": 10}[config.model.remat]
        sizes = {"fits": needed <= memory, "peak_bytes": needed, "memory_bytes": memory}
        return sizes | {"remat": config.model.remat}

    monkeypatch.setattr(program, "_compile_step", compiled)
    figures = program.compile_step(tiny(**{"model.remat": "auto"}), fake(chip))
    assert figures["remat"] == choice


@pytest.fixture(scope="module")
def figures():
    """Of a step that is compiled for this machine's own device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "COMPILER_OPTIONS", {"tpu": {}})
        return program.compile_step(tiny(**NARROW), fake())


def test_what_is_on_every_device_is_what_a_run_has_before_its_first_step(figures):
    state = abstract_train_state(tiny(**NARROW))
    sizes = (estimate.array_bytes(part) for part in (state.model, state.optimizer))
    assert figures["state_bytes"] == sum(sizes) < figures["peak_bytes"]


def test_any_compiler_gives_the_keys_and_the_text(figures):
    assert set(figures) >= KEYS and json.loads(json.dumps(figures)) == figures
    assert figures["fits"] and figures["cycles"] is None
    text = program.describe(figures)
    assert "v5e:1: 1 x TPU v5e" in text and "estimates none" in text


def test_the_text_of_a_tpu_has_cycles_kernels_and_places(figures):
    kernel = {"name": "attend", "calls": 9, "seconds": {"instructions": 0.5, "memory": 0.125}}
    place = {"place": "model/attention.py:98", "pass": "forward", "seconds": 0.6, "share": 0.4}
    text = program.describe(
        figures
        | {"cycles_outside_kernels": 15 * 10**8, "cycles_of_kernels": 75 * 10**7}
        | {"cycles": 225 * 10**7, "seconds": 1.5, "share_of_peak": 0.14, "kernels": [kernel]}
        | {"places": [place], "unknown_kernels": ["silent"], "unknown_loops": ["while.3"]}
    )
    for words in ("1,500 M outside kernels", "750 M in kernels", "2,250 M together", "1.500 s"):
        assert words in text
    assert "attend, 9 calls: instructions 500.0, memory 125.0" in text
    assert "14.0% of 197 TFLOP/s" in text
    assert "600.0  40.0%  forward         model/attention.py:98" in text
    assert "kernel silent" in text and "loop while.3" in text


def test_the_text_of_a_gpu_has_kernels_bytes_and_what_is_unknown(figures):
    text = program.describe(
        {name: each for name, each in figures.items() if name != "kernels"}
        | {"launches": 3_600, "moved_bytes": 18e11, "product_flops": 2e14, "seconds": 0.65}
        | {"share_of_peak": 0.215, "unknown_products": {"__cudnn$fmha": 12}}
    )
    for words in ("3,600 a step, 1,800 GB", "200 TFLOP", "0.650 s at least", "21.5% of"):
        assert words in text
    assert "kernel __cudnn$fmha, 12 calls: only its bytes count" in text


def test_what_does_not_fit_is_written_before_it_is_said(tmp_path, capsys, monkeypatch):
    small = fake()._replace(chip=CHIPS["v5e"]._replace(memory_bytes=1000))
    monkeypatch.setattr(program, "COMPILER_OPTIONS", {"tpu": {}})
    monkeypatch.setattr(program, "make_target", lambda *arguments: small)
    call = ["--topology=v5e:1", f"--json={tmp_path / 'figures.json'}"]
    assert program.main([*call, *options(NARROW)]) == 6
    output, errors = capsys.readouterr()
    assert "does not fit" in output
    assert "out of memory: a step needs " in errors and "of each TPU v5e of v5e:1" in errors
    assert "GB of every device are parameters and optimizer state" in errors
    assert "data.batch_size (now 4)" in errors and "model.remat" in errors
    assert json.loads((tmp_path / "figures.json").read_text())["fits"] is False


def test_a_core_has_its_part_of_a_chip():
    chip = CHIPS["v4"]
    assert chip.part(1) == chip
    core = chip.part(2)
    assert 2 * core.peak_flops == chip.peak_flops and 2 * core.memory_bytes == chip.memory_bytes
    assert core.clock == chip.clock
