"""Laws of the table of parameters: it is complete, and moments are sharded as parameters."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import block_recurrent as br
from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    MuonConfig,
)
from block_recurrent.model.parameters import named_parameters
from block_recurrent.model.stack import stacked_layers
from block_recurrent.parallel.axes import DATA, FSDP, TENSOR
from block_recurrent.parallel.parameters import (
    TABLE,
    describe_sharding,
    parameter_axes,
    parameter_shardings,
    table_axes,
)
from block_recurrent.training.build import abstract_model, abstract_train_state
from block_recurrent.training.step import train_state_sharding
from tests.baselines.tiny import CONFIGS
from tests.helpers import MODELS

ALL = MODELS | CONFIGS
PAPER = {"num_layers": 3, "recurrent_layers": (1,), "vocab_size": 256}


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), (DATA, FSDP, TENSOR))


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_in_the_table_with_all_its_axes(name):
    config = ALL[name]
    paths = stacked_layers(config) if isinstance(config, br.ModelConfig) else ()
    stacked = tuple(f"{path}." for path in paths)
    for path, array in named_parameters(abstract_model(config)).items():
        assert len(table_axes(path)) + path.startswith(stacked) == array.ndim, path


@pytest.mark.parametrize("name", ALL)
def test_the_description_has_every_parameter_once(name):
    named = named_parameters(abstract_model(ALL[name]))
    told = describe_sharding({DATA: 2, FSDP: 4, TENSOR: 1}, named)
    for path in named:
        ending = ".".join(path.split(".")[-2:])
        (where,) = (row for row, names in told.items() if ending in names.split(", "))
        axes = [axis for axis in table_axes(path) if axis == FSDP]
        assert where.count(FSDP) == len(axes) and TENSOR not in where
    assert describe_sharding({DATA: 8, FSDP: 1, TENSOR: 1}, named) == {}


def test_every_line_of_the_table_matches_a_parameter():
    names = [path for config in ALL.values() for path in named_parameters(abstract_model(config))]
    for ending in TABLE:
        assert any(re.fullmatch(rf"(.*\.)?{ending}", name) for name in names), ending


def test_large_parameters_are_sharded_along_both_axes():
    for gate, wiring in (("fixed", "skip"), ("lstm", "single"), ("lstm", "dual")):
        model = abstract_model(br.ModelConfig(**PAPER, gate=gate, wiring=wiring, feedback=True))
        for path, array in named_parameters(model).items():
            if array.size >= 1 << 20:
                assert {FSDP, TENSOR} <= set(table_axes(path)), path


OPTIMIZERS = {"adafactor": AdafactorConfig(), "adamw": AdamWConfig(), "muon": MuonConfig()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("feedback", [False, True])
def test_moments_are_sharded_as_their_parameters(optimizer, feedback):
    config = ExperimentConfig(
        model=br.ModelConfig(**PAPER, feedback=feedback),
        data=DataConfig(batch_size=2),
        optimizer={"adafactor": AdafactorConfig, "adamw": AdamWConfig, "muon": MuonConfig}[
            optimizer
        ](),
    )
    state = abstract_train_state(config)
    shardings = train_state_sharding(one_device(), state)
    shapes = {path: x.shape for path, x in named_parameters(state.model).items()}
    moments = jax.tree_util.tree_leaves_with_path(state.optimizer)
    along: dict[str, set] = {}
    leaves = jax.tree.leaves(shardings.optimizer)
    for (path, array), sharding in zip(moments, leaves, strict=True):
        name, axes = getattr(path[-1], "key", None), tuple(sharding.spec)
        if name in shapes and axes:
            assert len(axes) == array.ndim
            if array.shape == shapes[name]:
                assert axes == parameter_axes(name, array.shape)
            sizes = dict(zip(parameter_axes(name, shapes[name]), shapes[name], strict=True))
            for axis, size in zip(axes, array.shape, strict=True):
                assert axis is None or size == sizes[axis]
            along.setdefault(f"{path[-2].name} {name}", set()).update(filter(None, axes))
    for name in shapes:
        wanted = set(filter(None, table_axes(name)))
        if optimizer == "adamw":
            assert along.get(f"mu {name}") == along.get(f"nu {name}") == wanted, name
        elif optimizer == "muon":
            assert along.get(f"mu {name}") == wanted, name
            assert name.endswith("kernel") or along.get(f"nu {name}") == wanted, name
        else:
            assert along.get(f"ema {name}") == wanted, name
            second = [along.get(f"{kind} {name}", set()) for kind in ("v_row", "v_col", "v")]
            assert set.union(*second) == wanted, name


def test_sizes_that_do_not_divide_are_all_named():
    model = abstract_model(MODELS["fixed_skip"])  # of size 12, with 2 heads
    mesh = Mesh(np.array([f"device {i}" for i in range(8)]).reshape(1, 8, 1), (DATA, FSDP, TENSOR))
    with pytest.raises(ConfigError) as caught:
        parameter_shardings(mesh, named_parameters(model))
    message = str(caught.value)
    assert "embedding [11, 12]: 12 is no multiple of mesh.fsdp = 8" in message
    assert message.count("mesh.fsdp = 8") > 5 and "norm.scale" not in message
