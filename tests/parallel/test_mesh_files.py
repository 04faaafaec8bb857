"""The files of `gin/meshes/` fit the devices that they are named after, and the paper's runs."""

import math
import re

import numpy as np
import pytest

from block_recurrent.gin_files import GIN_FOLDER, load
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.training.build import abstract_model
from block_recurrent.training.step import model_sharding

MESHES = sorted(path.name for path in (GIN_FOLDER / "meshes").glob("*.gin"))
RUNS = ("table1/pg19_tokens/rec_lstm_dual.gin", "scaling/1300m_rec.gin")


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("run", RUNS)
def test_a_mesh_uses_all_devices_and_shares_everything_evenly(run, name):
    config = load([run, f"meshes/{name}"], needs_data=False)
    sizes = re.fullmatch(r"\w+_((?:\d+x)*\d+)\.gin", name)
    assert sizes
    devices = [f"device {i}" for i in range(math.prod(map(int, sizes[1].split("x"))))]
    mesh = make_mesh(config.mesh, config.data.batch_size, np.array(devices), exact=True)
    model_sharding(mesh, abstract_model(config.model))
