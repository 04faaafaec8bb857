"""Laws of `model.remat = "auto"`: the first choice whose compiled step fits, in all processes."""

import dataclasses

import jax
import pytest

from block_recurrent.config import AdafactorConfig, DataConfig, ExperimentConfig, MeshConfig
from block_recurrent.model.attention import built_for
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.training import remat
from tests.helpers import model_config

CONFIG = ExperimentConfig(
    model=model_config(remat="auto", vocab_size=256, num_layers=4, scan_layers=True),
    data=DataConfig(batch_size=8, segment_length=64),
    optimizer=AdafactorConfig(),
    mesh=MeshConfig(data=1),
)
NEEDED = {"none": 3e9, "dots": 2e9, "layer": 1e9}


@pytest.mark.parametrize(
    "memory, choice, said",
    [
        (4e9, "none", "a step needs 3.00 GB with 'none'; a device has 4.00 GB"),
        (
            3e9,
            "dots",
            "a step needs 3.00 GB with 'none', 2.00 GB with 'dots'; a device has 3.00 GB",
        ),
        (2e9, "layer", "3.00 GB with 'none', 2.00 GB with 'dots'; a device has 2.00 GB"),
    ],
)
def test_the_first_that_leaves_a_tenth_of_the_memory_is_chosen(monkeypatch, memory, choice, said):
    monkeypatch.setattr(remat, "device_memory", lambda devices: memory)
    monkeypatch.setattr(remat, "_needed", lambda config, mesh: NEEDED[config.model.remat])
    chosen, line = remat.choose_remat(CONFIG)
    assert chosen == remat.with_remat(CONFIG, choice)
    assert line.startswith(f"model.remat = {choice!r}: ") and line.endswith(said)


@pytest.mark.parametrize(("attention", "first"), [("pallas", "none"), ("tiled", "dots")])
def test_a_gpu_keeps_all_only_if_its_attention_is_fused(attention, first):
    model = dataclasses.replace(
        CONFIG.model, attention=attention, dtype="bfloat16", window=128, head_size=64
    )
    data = dataclasses.replace(CONFIG.data, segment_length=128)
    with built_for("gpu", "9.0"):
        choices = remat.choices_for(dataclasses.replace(CONFIG, model=model, data=data), "gpu")
    assert choices[0] == first and set(choices) >= {"dots", "layer"}


def test_without_fused_attention_a_gpu_computes_projections_again_only_if_it_has_to(monkeypatch):
    of = remat.choices_for
    monkeypatch.setattr(remat, "choices_for", lambda config, platform: of(config, "gpu"))
    monkeypatch.setattr(remat, "device_memory", lambda devices: 4e9)
    monkeypatch.setattr(remat, "_needed", lambda config, mesh: NEEDED[config.model.remat])
    chosen, line = remat.choose_remat(CONFIG)
    assert chosen.model.remat == "dots"
    assert line == "model.remat = 'dots': a step needs 2.00 GB with 'dots'; a device has 4.00 GB"


def test_a_step_that_computes_more_again_needs_less(monkeypatch):
    mesh = make_mesh(CONFIG.mesh)
    none, dots, layer = (
        remat._needed(remat.with_remat(CONFIG, choice), mesh) for choice in remat.CHOICES
    )
    assert none > dots > layer
    monkeypatch.setattr(remat, "device_memory", lambda devices: (none + dots) / 2 / remat.SHARE)
    assert remat.choose_remat(CONFIG)[0].model.remat == "dots"


def test_a_step_that_a_compiler_finds_too_large_does_not_fit(monkeypatch):
    class TooLarge(jax.errors.JaxRuntimeError):
        error_code_string = "RESOURCE_EXHAUSTED"

    def overflow(config, mesh):
        raise TooLarge

    monkeypatch.setattr(remat, "lower_step", overflow)
    chosen, line = remat.choose_remat(CONFIG)
    assert chosen.model.remat == "layer" and "too much with 'none', too much with 'dots'" in line


def test_another_error_of_the_compiler_is_not_hidden(monkeypatch):
    def broken(config, mesh):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(remat, "lower_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        remat.choose_remat(CONFIG)
