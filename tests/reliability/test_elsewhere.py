"""Laws of other places: the same numbers on other devices and without a model; no network."""

import functools
import json
import subprocess

import jax.numpy as jnp

from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs.checkpoints import Checkpoints, read_parameters
from block_recurrent.training import TrainState
from tests import quick_runs
from tests.helpers import assert_equal, model_config, random_like, random_train_state
from tests.interpreter import python

LANES, DEVICES = 8, 4


@functools.cache
def initial() -> TrainState:
    return random_train_state(model_config(0, num_layers=2), batch_size=LANES)


def trained() -> TrainState:
    return random_like(initial(), seed=3)._replace(step=jnp.int32(3))


MOVE = """
import importlib.util, sys
import jax
from block_recurrent.config import MeshConfig
from block_recurrent.parallel.mesh import make_mesh, put
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.training.step import train_state_sharding

spec = importlib.util.spec_from_file_location("elsewhere", sys.argv[1])
spec.loader.exec_module(here := importlib.util.module_from_spec(spec))
before, after = map(Checkpoints, sys.argv[2:])
initial = here.initial()
sharding = train_state_sharding(make_mesh(MeshConfig(), here.LANES), initial)
state, progress = before.restore(put(initial, sharding))
assert len(jax.devices()) == here.DEVICES
assert {len(x.sharding.device_set) for x in jax.tree.leaves(state.model)} == {here.DEVICES}
for x in jax.tree.leaves(state.carried):
    assert x.addressable_shards[0].data.shape[1] == here.LANES // here.DEVICES
here.assert_equal(state, here.trained())
after.save(state, progress)
after.close()
"""


def test_the_same_numbers_on_other_devices_and_as_numpy(tmp_path):
    before, after = Checkpoints(tmp_path / "one"), Checkpoints(tmp_path / "four")
    before.save(trained(), {"x": 1})
    before.close()
    python(MOVE, __file__, before.directory, after.directory, devices=DEVICES)
    state, progress = after.restore(initial())
    assert_equal(state, trained())
    assert progress == {"x": 1}
    for directory in (before.directory, after.directory):
        assert_equal(read_parameters(directory), named_parameters(trained().model))


BLOCK = """
import socket

def refuse(*arguments, **options):
    raise OSError("the network is blocked")

for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse)
"""
ALL_PROGRAMS = """
import socket, sys
from experiments import evaluate, generate, train

try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError as error:
    assert str(error) == "the network is blocked", error
else:
    sys.exit("the network is not blocked")
gin, workdir, prompt = sys.argv[1:]
assert train.main([f"--gin_file={gin}", f"--workdir={workdir}"]) == 0
assert evaluate.main([f"--workdir={workdir}"]) == 0
options = [f"--prompt_file={prompt}", "--max_new_tokens=5"]
assert generate.main([f"--workdir={workdir}", *options]) == 0
"""


def without_network() -> tuple[str, ...]:
    """A command that runs another where there is no network at all, if the system permits it."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        permitted = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        permitted = False
    return command if permitted else ()


def test_training_evaluation_and_generation_need_no_network(tmp_path):
    inputs = quick_runs.make_inputs(tmp_path)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/sitecustomize.py").write_text(BLOCK)
    (tmp_path / "prompt").write_text("the quick ")
    arguments = (inputs / "tiny.gin", tmp_path / "run", tmp_path / "prompt")
    blocked = {"PYTHONPATH": str(tmp_path / "blocked")}
    python(ALL_PROGRAMS, *arguments, prefix=without_network(), **blocked)
    evaluation = json.loads((tmp_path / "run/evaluation_validation.json").read_text())
    assert evaluation["step"] == quick_runs.STEPS
