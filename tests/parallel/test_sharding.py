"""Laws of sharding: whatever the mesh, a run's figures and its documents are the same."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import slow
from tests.interpreter import python, settings


@pytest.mark.parametrize("model", ["fixed_skip", *slow("lstm_dual", "feedback")])
def test_twenty_steps_are_the_same_on_one_device_and_on_a_mesh(model):
    command = [sys.executable, "-m", "tests.parallel.steps", model]
    ended = subprocess.run(command, env=settings(devices=8), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Involuntary full rematerialization" not in ended.stderr
    one, other = json.loads(ended.stdout.splitlines()[-1])
    expected, actual = np.array(one["steps"]), np.array(other["steps"])
    assert len(expected) == 20
    assert abs(actual[:, 0] - expected[:, 0]).max() < 1e-5
    assert abs(actual[:, 1] / expected[:, 1] - 1).max() < 1e-5
    assert other["astray"] == []
    assert other["lanes"] == one["lanes"]


EXCHANGED = """
import jax
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.training.trainer import lower_step
from tests.parallel.steps import MESHES, experiment

config = experiment("plain", MESHES["plain"])
mesh = make_mesh(config.mesh, config.data.batch_size, exact=True)
text = lower_step(config, mesh).compile().as_text()
print(sum(text.count(f" {name}(") for name in ("all-to-all", "collective-permute")))
"""


def test_devices_that_share_out_heads_and_hidden_units_move_no_activations():
    """They gather kernels and sum; each has the keys, values and queries of its heads."""
    assert python(EXCHANGED, devices=8).splitlines()[-1] == "0"


MOVE = """
import sys
import jax
import numpy as np
from block_recurrent.model.parameters import named_parameters
from block_recurrent.parallel.mesh import make_mesh, put
from block_recurrent.runs.checkpoints import Checkpoints, read_parameters
from block_recurrent.training.trainer import abstract_run_state
from block_recurrent.training.step import train_state_sharding
from tests.helpers import random_like
from tests.parallel.steps import experiment

def mesh_of(sizes):
    config = experiment("lstm_dual", sizes)
    return make_mesh(config.mesh, config.data.batch_size), config

first, config = mesh_of((1, 4, 1))
shapes = abstract_run_state(config, first)
state = random_like(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
state = state._replace(step=np.int32(1))
store = Checkpoints(sys.argv[1])
store.save(put(state, train_state_sharding(first, state)), {})
store.wait()
for sizes in ((1, 2, 2), (2, 1, 2), (1, 1, 1)):
    mesh, config = mesh_of(sizes)
    found, _ = store.restore(abstract_run_state(config, mesh))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(found)} == {mesh.size}
    jax.tree.map(np.testing.assert_array_equal, found, state)
jax.tree.map(
    np.testing.assert_array_equal, read_parameters(sys.argv[1]), dict(named_parameters(state.model))
)
"""


def test_a_checkpoint_of_one_mesh_is_read_by_others_to_the_last_bit(tmp_path):
    python(MOVE, tmp_path / "checkpoints", devices=4)
