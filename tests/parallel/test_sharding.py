"""Laws of sharding: whatever the mesh, a run's figures and its documents are the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.parallel import steps


@pytest.mark.parametrize(
    ("model", "meshes"),
    [(model, "all" if model == "fixed_skip" else "product") for model in steps.MODELS],
)
def test_twenty_steps_are_the_same_on_every_mesh(model, meshes):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-m", "tests.parallel.steps", model, meshes]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Involuntary full rematerialization" not in ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    one = found.pop("(1, 1, 1)")
    assert len(found) == (len(steps.MESHES) if meshes == "all" else 1)
    for mesh, other in found.items():
        expected, actual = np.array(one["steps"]), np.array(other["steps"])
        assert abs(actual[:, 0] - expected[:, 0]).max() < 1e-5, mesh
        assert abs(actual[:, 1] / expected[:, 1] - 1).max() < 1e-5, mesh
        assert other["astray"] == [], mesh
        assert other["lanes"] == one["lanes"], mesh
