"""`model.remat = "auto"`: the fastest rematerialisation that fits the devices."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from block_recurrent.config import ExperimentConfig, ModelConfig
from block_recurrent.model.attention import attention_name
from block_recurrent.parallel import processes
from block_recurrent.parallel.mesh import make_mesh
from block_recurrent.system.devices import device_memory, is_out_of_memory
from block_recurrent.training.trainer import lower_step

AUTO = "auto"
CHOICES = ("none", "dots", "layer")  # values of `model.remat`, the fastest first
FUSED = ("cudnn", "pallas")  # attention of which no probabilities are kept
SHARE = 0.9  # of a device's memory; evaluations and the batches to come need some, too


def with_remat(config: ExperimentConfig, remat: str) -> ExperimentConfig:
    """The configuration with another `model.remat`."""
    model: Any = dataclasses.replace(config.model, remat=remat)  # pyright: ignore
    return dataclasses.replace(config, model=model)


def choices_for(config: ExperimentConfig, platform: str) -> tuple[str, ...]:
    """What "auto" chooses from on a platform, the fastest first.

    By its compiler a GPU is slower with "none" than with "dots" unless its attention is fused: the
    probabilities that are kept go through memory.
    """
    model = config.model
    fused = isinstance(model, ModelConfig) and attention_name(model) in FUSED
    return CHOICES if platform != "gpu" or fused else CHOICES[1:]


def choose_remat(config: ExperimentConfig) -> tuple[ExperimentConfig, str]:
    """The configuration with the fastest `model.remat` whose step fits the devices.

    Steps are compiled for that, in all processes, and not run. The last choice is taken without.

    Returns:
      The configuration, and a line for people.
    """
    mesh = make_mesh(config.mesh, config.microbatch_size, exact=processes.several())
    *choices, remat = choices_for(config, mesh.devices.flat[0].platform)
    available, texts = device_memory(mesh.local_devices), []
    for choice in choices:
        needed = _needed(with_remat(config, choice), mesh)
        size = f"{needed / 1e9:.2f} GB" if needed < math.inf else "too much"
        texts.append(f"{size} with {choice!r}")
        if not processes.any_of(needed > SHARE * available):
            remat = choice
            break
    line = f"a step needs {', '.join(texts)}; a device has {available / 1e9:.2f} GB"
    return with_remat(config, remat), f"model.remat = {remat!r}: {line}"


def _needed(config: ExperimentConfig, mesh: Mesh) -> float:
    """The most memory of a device that the step needs."""
    try:
        memory: Any = lower_step(config, mesh).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    on_cpu = mesh.devices.flat[0].platform == "cpu"  # its compiler leaves temporaries out
    return memory.peak_memory_in_bytes + (memory.temp_size_in_bytes if on_cpu else 0)
