"""Laws of the dry run: it counts what is there, and it needs no data."""

import dataclasses
from typing import Any

import jax
import pytest
from flax import nnx

from block_recurrent import LanguageModel
from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    DataConfig,
    ExperimentConfig,
    MeshConfig,
)
from block_recurrent.gin_files import TO_BE_GIVEN, load
from block_recurrent.model.parameters import count_parameters
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.training import estimate
from block_recurrent.training.build import abstract_train_state, make_train_state
from block_recurrent.training.trainer import lower_step
from experiments import train
from tests.helpers import MODELS, model_config, slow

DATA = DataConfig(batch_size=2, segment_length=16)
BYTES = {"vocab_size": 256}
SHORT = ["data.segment_length=512"]


def experiment(optimizer: str = "adafactor", **changes) -> ExperimentConfig:
    model = model_config(1, **(BYTES | changes))
    kind = {"adafactor": AdafactorConfig, "adamw": AdamWConfig}[optimizer]
    return ExperimentConfig(model=model, data=DATA, optimizer=kind())


def memory(**changes) -> estimate.Memory:
    config = experiment(**changes)
    return estimate.estimate_memory(config, abstract_train_state(config))


def nbytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_optimizer_and_carried_state_are_those_of_the_arrays(optimizer, dtype):
    config = experiment(optimizer, dtype=dtype)
    state = make_train_state(config)
    estimate = memory(optimizer=optimizer, dtype=dtype)
    assert estimate.parameters == estimate.gradients == nbytes(state.model)
    assert estimate.optimizer_state == nbytes(state.optimizer)
    assert estimate.carried_state == nbytes(state.carried)


@pytest.mark.parametrize("name", ["slide", "fixed_dual", "lstm_skip", "feedback_lstm_skip"])
def test_components_add_up_to_all_parameters(name):
    model = jax.eval_shape(lambda: LanguageModel(MODELS[name], rngs=nnx.Rngs(0)))
    counts = estimate.count_components(model)
    assert sum(counts.values()) == count_parameters(model)
    assert counts["embedding"] == model.embedding.size
    assert sum("recurrent" in label for label in counts) == 2 * len(MODELS[name].recurrent_layers)


def test_feedback_is_what_a_model_with_it_has_more():
    def build(feedback):
        config = model_config(1, feedback=feedback)
        return jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))

    more = count_parameters(build(True)) - count_parameters(build(False))
    assert estimate.count_components(build(True))["feedback"] == more
    assert estimate.count_components(build(False))["feedback"] == 0


def test_remat_keeps_less():
    kept = {remat: memory(remat=remat, num_layers=6) for remat in ("none", "dots", "layer")}
    assert kept["none"].activations > kept["dots"].activations > 2 * kept["layer"].activations
    assert kept["none"].computed_again == 0 < kept["layer"].computed_again
    assert kept["layer"].computed_again < kept["none"].activations


def test_microbatches_need_less_in_the_estimate_and_in_the_compiled_step():
    data = dataclasses.replace(DATA, batch_size=8)
    config = dataclasses.replace(experiment(num_layers=2), data=data)
    training = dataclasses.replace(config.training, accumulate_steps=4)
    in_parts = dataclasses.replace(config, training=training)
    state = abstract_train_state(config)

    def temporary(config: ExperimentConfig) -> int:
        memory: Any = lower_step(config, make_mesh(config.mesh, 1)).compile().memory_analysis()
        return memory.temp_size_in_bytes

    whole, parts = (estimate.estimate_memory(each, state) for each in (config, in_parts))
    assert parts.logits * 4 == whole.logits and parts.activations < whole.activations / 3
    assert parts.carried_state == whole.carried_state
    assert parts.gradients == 2 * whole.gradients
    assert temporary(in_parts) < temporary(config) / 2
    assert sum(parts) < sum(whole) / 2


def test_logits_by_window_are_those_of_a_window():
    at_once, by_window = (memory(logits_by_window=by_window) for by_window in (False, True))
    assert at_once.logits > by_window.logits > 0
    assert at_once.activations >= by_window.activations


def test_every_further_layer_keeps_as_much_again():
    three, four, five = (memory(num_layers=layers).activations for layers in (3, 4, 5))
    assert five - four == four - three > 0


def test_activations_grow_with_the_batch_and_shrink_with_the_dtype():
    config = experiment(num_layers=6)
    state = abstract_train_state(config)
    double = dataclasses.replace(config, data=dataclasses.replace(DATA, batch_size=4))
    doubled = estimate.estimate_memory(double, abstract_train_state(double))
    once = estimate.estimate_memory(config, state)
    assert 1.7 < doubled.activations / once.activations < 2
    assert doubled.logits == 2 * once.logits
    half = memory(num_layers=6, dtype="bfloat16")
    assert 0.5 < half.activations / once.activations < 0.9


def test_a_run_is_described_without_data_and_without_a_work_directory(capsys, tmp_path):
    run = "table1/pg19_tokens/rec_fixed_skip.gin"
    assert train.main([f"--gin_file={run}", "--dry_run"]) == 0
    output = capsys.readouterr().out
    shown, _, rest = output.partition("\nparameters\n")
    (tmp_path / "config.gin").write_text(shown, encoding="utf-8")
    assert load([tmp_path / "config.gin"]) == load([run], needs_data=False)
    assert shown.count(TO_BE_GIVEN) == 2
    words = [line.split() for line in rest.splitlines()]
    assert ["total", "without", "embedding", "160,462,968"] in words
    assert ["final", "norm", "1,024"] in words
    assert ["a", "step", "131,072"] in words and words[-1][-1] == f"{2**17 * 500_000:,}"


@pytest.mark.parametrize("row", ["transformer_xl", *slow("transformer", "lstm")])
def test_a_dry_run_knows_the_baselines(row, capsys):
    """Also what is computed again: less is kept, and one layer of what was kept else."""
    files = [f"--gin_file=table1/pg19_bytes/{row}.gin", "--dry_run"]
    assert train.main(files) == 0
    assert "layers 1-12" in capsys.readouterr().out
    config = load([f"table1/pg19_bytes/{row}.gin", "sizes/tiny.gin"], SHORT, needs_data=False)
    state = abstract_train_state(config)
    assert sum(estimate.count_components(state.model).values()) == count_parameters(state.model)
    kept = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    again, all_kept = (estimate.estimate_memory(c, abstract_train_state(c)) for c in (config, kept))
    assert again.activations + again.computed_again < all_kept.activations
    assert all_kept.computed_again == 0 < again.computed_again


def test_each_mesh_axis_shards_its_part_of_the_memory():
    sizes = {"num_layers": 2, "model_size": 64, "num_heads": 4, "head_size": 16, "mlp_size": 64}
    config = experiment(**sizes)
    state = abstract_train_state(config)
    whole = estimate.estimate_memory(config, state)
    sharded = {}
    for mesh in ({"data": 2}, {"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}):
        meshed = dataclasses.replace(config, mesh=MeshConfig(**mesh))
        sharded[max(mesh, key=mesh.__getitem__)] = estimate.estimate_memory(meshed, state)
    assert sharded["data"].parameters == whole.parameters
    for axis in ("fsdp", "tensor"):
        assert 0.5 <= sharded[axis].parameters / whole.parameters < 0.55
    for axis in ("data", "fsdp"):
        assert sharded[axis].activations == whole.activations // 2
        assert sharded[axis].carried_state == whole.carried_state // 2
    assert sharded["tensor"].activations == whole.activations
