"""Twenty steps of a tiny model on one of a CPU's eight devices and on a mesh; prints figures.

Run as a program, because the number of devices is set before JAX begins.
"""

import dataclasses
import json
import sys

import jax

from block_recurrent.config import (
    AdafactorConfig,
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    TrainingConfig,
)
from block_recurrent.data import ByteTokenizer, Corpus, Document, tokenize
from block_recurrent.model.parameters import named_parameters
from block_recurrent.parallel.parameters import parameter_axes
from block_recurrent.system.progress import Stopwatch
from block_recurrent.training.trainer import Trainer

STEPS = 20
SEED = 1  # with 0 a hidden unit is 0 to rounding in one step, where the gradient jumps
SIZES = {"model_size": 16, "num_heads": 8, "head_size": 4, "mlp_size": 16, "window": 4}
MODELS = {
    "plain": {},
    "fixed_skip": {"recurrent_layers": (1,), "dropout": 0.1},
    "lstm_dual": {"recurrent_layers": (0, 1), "gate": "lstm", "wiring": "dual"},
    "feedback": {"recurrent_layers": (1,), "feedback": True},
}
# Every axis is a mesh's largest once, and shares one with each other.
MESHES = {
    "plain": (1, 2, 4),
    "fixed_skip": (2, 2, 2),
    "lstm_dual": (1, 2, 4),
    "feedback": (2, 4, 1),
}
MICROBATCHES = {"lstm_dual": 2}  # on the mesh
TEXTS = ["0123456789" * 9, "abcdefg" * 3, "to be or not to be, that is", "xy", ".,;" * 33]


def experiment(model: str, mesh: tuple[int, ...]) -> ExperimentConfig:
    microbatches = MICROBATCHES.get(model, 1) if mesh == MESHES[model] else 1
    config = ModelConfig(vocab_size=256, num_layers=2, num_states=4, **(SIZES | MODELS[model]))
    return ExperimentConfig(
        model=config,
        data=DataConfig(batch_size=8, segment_length=8),
        optimizer=AdafactorConfig(schedule="cosine", learning_rate=0.01, warmup_steps=3),
        training=TrainingConfig(num_steps=STEPS, accumulate_steps=microbatches, seed=SEED),
        mesh=MeshConfig(**dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))),
    )


def take_steps(config: ExperimentConfig) -> dict:
    """The losses in bits a token and gradient norms of all steps; how parameters lie."""
    documents = tuple(Document(f"d{i}", "", text) for i, text in enumerate(TEXTS))
    trainer = Trainer(config, tokenize(Corpus(documents), ByteTokenizer()), Stopwatch())
    trainer.begin()
    figures = []
    for _ in range(STEPS):
        trainer.take_step()
        found = trainer.metrics()
        figures.append([found["bits_per_token"], found["gradient_norm"]])
    mesh = dataclasses.asdict(config.mesh)
    astray = []
    for name, array in named_parameters(trainer.state.model).items():
        axes = parameter_axes(name, array.shape)
        shape = tuple(
            size // mesh.get(axis, 1) for size, axis in zip(array.shape, axes, strict=True)
        )
        if {shard.data.shape for shard in array.addressable_shards} != {shape}:
            astray.append(name)
    return {"steps": figures, "astray": astray, "lanes": trainer.position()["lanes"]}


def main() -> None:
    assert len(jax.devices()) == 8
    model = sys.argv[1]
    found = [take_steps(experiment(model, sizes)) for sizes in ((1, 1, 1), MESHES[model])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
