"""A trained model in one file of the safetensors format, which needs no work directory.

Each parameter is a tensor. Its name is its path in the model, joined by dots, such as
"stack.parts.0.layers.keys.kernel", as in a checkpoint. Tensors have the shapes and dtypes of the
model: kernels are [in, out], and plain layers of a stack that follow each other are stacked along a
first axis. The metadata of the file, which are text, are:

config     the run's configuration as gin text
step       training step of the checkpoint
progress   JSON: what the checkpoint holds besides arrays
crc32      checksum of all of these and of the tensors
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import make_tokenizer
from block_recurrent.gin_files import load_text, to_gin
from block_recurrent.interop.named import check_names
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.runs.errors import CheckpointError, SaveFailed
from block_recurrent.runs.trained import TrainedModel
from block_recurrent.system.extras import require
from block_recurrent.system.files import reason, whole_file
from block_recurrent.system.text import parse_json
from block_recurrent.training.build import abstract_model

CONFIG, STEP, PROGRESS, CHECKSUM = "config", "step", "progress", "crc32"


def save_safetensors(trained: TrainedModel, file: str | Path) -> None:
    """Writes a trained model and its configuration to a file, which appears whole or not at all.

    Args:
      trained: what `load` returns; every parameter keeps its dtype.
      file: replaced if it exists.

    Raises:
      MissingPackage: safetensors is not installed.
      SaveFailed: the file cannot be written.
    """
    numpy = require("safetensors.numpy", "safetensors")
    arrays = {name: np.asarray(array) for name, array in named_parameters(trained.model).items()}
    metadata = {
        CONFIG: to_gin(trained.config),
        STEP: str(trained.step),
        PROGRESS: json.dumps(dict(trained.progress)),
    }
    metadata[CHECKSUM] = _checksum(metadata, arrays)
    try:
        with whole_file(Path(file)) as partial:
            numpy.save_file(arrays, partial, metadata)
    except (OSError, require("safetensors", "safetensors").SafetensorError) as error:
        raise SaveFailed(f"{file} cannot be written ({reason(error)})") from error


def load_safetensors(file: str | Path, *, config: ExperimentConfig | None = None) -> TrainedModel:
    """Reads what `save_safetensors` wrote: what `load` returns, bit for bit.

    Args:
      file: the whole file is checked first.
      config: used in place of the configuration in the file, for example with another path of the
        vocabulary.

    Raises:
      MissingPackage: safetensors is not installed.
      CheckpointError: the file cannot be read, is damaged or does not fit the configuration, or
        another program wrote it.
      DataError: the tokenizer's vocabulary cannot be read.
    """
    metadata, arrays = _read(Path(file))
    config = config or load_text(metadata[CONFIG], f"{file}, {CONFIG}")
    like = abstract_model(config.model)
    try:
        check_names(arrays, {name: array.shape for name, array in named_parameters(like).items()})
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    try:
        step, progress = int(metadata[STEP]), parse_json(metadata[PROGRESS])
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read ({reason(error)})") from error
    model = replace_parameters(like, jax.tree.map(jnp.asarray, arrays))
    return TrainedModel(model, config, make_tokenizer(config.data), step, progress)


def _read(file: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    safetensors = require("safetensors", "safetensors")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            missing = sorted({CONFIG, STEP, PROGRESS, CHECKSUM} - metadata.keys())
            if missing:
                raise CheckpointError(
                    f"{file} was not written by block-recurrent export: its metadata have no "
                    f"{', '.join(missing)}"
                )
            arrays = {name: opened.get_tensor(name) for name in opened.offset_keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({reason(error)})") from error
    if metadata.pop(CHECKSUM) != _checksum(metadata, arrays):
        raise CheckpointError(f"{file} is damaged: its checksum differs; export the model again")
    return metadata, arrays


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """The CRC-32 of names, values, dtypes and shapes, in the order of the names."""
    checksum = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return f"{checksum:08x}"
