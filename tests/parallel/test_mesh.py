"""Laws of data parallelism: all devices that fit are used, and the numbers stay the same."""

import json

import pytest

from block_recurrent.config import ConfigError, MeshConfig
from block_recurrent.parallel.mesh import make_mesh
from tests.interpreter import python

RUN = """
import json, pathlib, sys
import jax
from block_recurrent.config import *
from block_recurrent.data import ByteTokenizer, Corpus, Document, tokenize
from block_recurrent.data.loading import Corpora
from block_recurrent.parallel.mesh import put_batch
from block_recurrent.runs.loop import TrainingLoop
from block_recurrent.system.progress import ProgressLine

sizes = dict(model_size=8, num_heads=2, head_size=4, mlp_size=8, window=4, num_states=4)
config = ExperimentConfig(
    model=ModelConfig(**sizes, vocab_size=256, num_layers=1, recurrent_layers=(0,)),
    data=DataConfig(batch_size=int(sys.argv[2]), segment_length=8),
    optimizer=AdafactorConfig(warmup_steps=3),
    training=TrainingConfig(
        num_steps=int(sys.argv[3]), log_every=1, accumulate_steps=int(sys.argv[4])
    ),
)
texts = ["0123456789" * 3, "abcdefg", "to be or not to be, that is", "xy", ".,;" * 11]
documents = tuple(Document(f"d{i}", "", text) for i, text in enumerate(texts))
tokens = tokenize(Corpus(documents), ByteTokenizer())
workdir, line = pathlib.Path(sys.argv[1]), ProgressLine(quiet=True)
run = TrainingLoop(config, workdir, Corpora(tokens, tokens), line)
begun = run.trainer.step
model, evaluation = run.finish()
run.close()
weights = jax.tree.leaves(model)
carried = run.trainer.state.carried
batch = put_batch(next(run.trainer.lanes), run.trainer.mesh, config.data.batch_size)
program = run.trainer._train_step.lower(run.trainer.state, batch).compile().as_text()
print(json.dumps({
    "begun": begun,
    "nats": evaluation.nats,
    "parameters": [float(abs(x).sum()) for x in weights],
    "devices": len(jax.devices()),
    "copies": sorted({len(x.sharding.device_set) for x in weights}),
    "gathers": program.count("all-gather"),
    "lanes": [x.addressable_shards[0].data.shape[1] for x in jax.tree.leaves(carried)],
}))
"""


def run(workdir, devices: int, batch_size: int = 8, steps: int = 4, microbatches: int = 1) -> dict:
    """A short training run on so many devices of the CPU."""
    output = python(RUN, workdir, batch_size, steps, microbatches, devices=devices)
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_rows_are_sharded_over_devices_however_many_and_no_number_changes(tmp_path):
    one = run(tmp_path / "one", devices=1)
    assert (one["devices"], one["copies"], set(one["lanes"])) == (1, [1], {8})
    four = run(tmp_path / "several", devices=4, steps=2, microbatches=2)
    assert (four["devices"], four["copies"], set(four["lanes"])) == (4, [4], {2})
    rest = run(tmp_path / "several", devices=2, microbatches=4)
    assert (rest["begun"], rest["copies"], set(rest["lanes"])) == (2, [2], {4})
    assert rest["nats"] == pytest.approx(one["nats"], rel=1e-6)
    assert four["gathers"] == rest["gathers"] == 0  # no row moves to another device
    assert rest["parameters"] == pytest.approx(one["parameters"], rel=1e-5)


EIGHT = list(range(8))  # stand for devices


@pytest.mark.parametrize(
    ("config", "lanes", "sizes"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 6, (6, 1, 1)),
        ({}, 16, (8, 1, 1)),
        ({"fsdp": 2}, 16, (4, 2, 1)),
        ({"fsdp": 2, "tensor": 2}, 4, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1)),
        ({"data": 2, "fsdp": 1, "tensor": -1}, 2, (2, 1, 4)),
    ],
)
def test_the_open_axis_gets_all_devices_that_are_left(config, lanes, sizes):
    mesh = make_mesh(MeshConfig(**config), lanes, EIGHT)
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.devices.reshape(-1).tolist() == EIGHT[: mesh.size]  # in their own order


@pytest.mark.parametrize(
    ("config", "lanes", "sentence"),
    [
        ({"fsdp": 4}, 6, "a batch of 6 rows cannot be sharded evenly over 4 groups of devices"),
        ({"data": 4, "tensor": 4}, 4, "mesh.data = 4, mesh.fsdp = 1, mesh.tensor = 4 are 16 dev"),
    ],
)
def test_sizes_that_do_not_fit_are_a_config_error(config, lanes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_mesh(MeshConfig(**config), lanes, EIGHT)


def test_an_exact_mesh_uses_all_devices():
    with pytest.raises(ConfigError, match="are 4 devices, but there are 8"):
        make_mesh(MeshConfig(data=4), 8, EIGHT, exact=True)
    with pytest.raises(ConfigError, match="a batch of 6 rows cannot be sharded evenly over 8"):
        make_mesh(MeshConfig(), 6, EIGHT, exact=True)
