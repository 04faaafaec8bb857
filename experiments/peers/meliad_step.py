"""A step of the authors' code (google-research/meliad, commit 760591c), through its own gin files.

Run with the folder of the clone as argument. Of its requirements it needs jax, flax, gin-config and
absl-py. What reads data and writes metrics takes no part in a step and is left out: seqio, clu and
TensorFlow are replaced by empty modules, and its training loop, which needs flax's former
optimizers, is not imported.
"""

import logging
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import gin
import jax
import jax.numpy as jnp
import numpy as np
from child import Size, serve

CONFIGS = "base_htrans", "options/positions_t5", "recurrent/bias_skip"
GATES = {"fixed": "bias", "lstm": "lstm"}


def import_models(folder: Path) -> Any:
    """The module of the authors' code that holds the language model and its loss."""
    for name in ("seqio", "clu", "tensorflow", "tensorflow.compat", "tensorflow.compat.v2"):
        sys.modules[name] = MagicMock()
    sys.modules["training_loop"] = None  # type: ignore[assignment]
    if not hasattr(jax.random, "KeyArray"):  # a type hint of former versions
        jax.random.KeyArray = jax.Array  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    from transformer import models  # pyright: ignore[reportMissingImports]

    return models


def bindings(size: Size) -> list[str]:
    """The authors' names for a size; everything else stays as their files have it."""
    model = size["model"]
    values = {
        "NUM_LAYERS": model["num_layers"],
        "NUM_HEADS": model["num_heads"],
        "HEAD_DIM": model["head_size"],
        "EMBED_DIM": model["model_size"],
        "MLP_DIM": model["mlp_size"],
        "NUM_EMBEDDINGS": model["vocab_size"],
        "DROPOUT_RATE": model["dropout"],
        "ATTN_DROPOUT_RATE": model["dropout"],
        "DTYPE": model["dtype"],
        "TransformerTaskConfig.sequence_length": size["segment_length"],
        "TransformerTaskConfig.batch_size": size["batch_size"],
        "TransformerLayer.window_length": model["window"],
        "TransformerLayer.recurrent_num_states": model["num_states"],
        "TransformerLayer.recurrent_gate_type": GATES[model["gate"]],
        "TransformerLayer.recurrent_skip_ffn": model["wiring"] == "skip",
        "TransformerLayer.recurrent_single_gate": model["wiring"] == "single",
        "DecoderStack.recurrent_layer_indices": tuple(model["recurrent_layers"]),
    }
    return [f"{name} = {value!r}" for name, value in values.items()]


def prepare(size: Size):
    """The step: loss, gradients of all parameters and the next cached state."""
    folder = Path(sys.argv[1]).resolve()
    models = import_models(folder)
    logging.disable(logging.ERROR)  # gin tells of every folder in which a file is not
    gin.add_config_file_search_path(str(folder / "transformer/configs"))
    files = [f"{name}.gin" for name in CONFIGS]
    gin.parse_config_files_and_bindings(files, bindings(size), skip_unknown=True)
    model = models.DecoderOnlyLanguageModel(mode="train")
    example = model.get_fake_input()
    variables = model.init(jax.random.key(0), example)
    parameters, state = variables["params"], variables["state"]
    tokens = np.random.default_rng(0).integers(
        1, size["model"]["vocab_size"], example["targets"].shape, np.int32
    )
    batch = {
        **example,
        "targets": jnp.asarray(tokens),
        "start_of_sequence": jnp.zeros_like(example["start_of_sequence"]),
    }

    @jax.jit
    def forward_and_backward(parameters, state, batch, key):
        def loss(parameters):
            inputs = {"params": parameters, "state": state}
            keys = {"dropout": key}
            (nats, _), new = model.apply(inputs, batch, rngs=keys, mutable=["state"])
            return nats, new["state"]

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    def step() -> None:
        nonlocal state
        (loss, state), gradients = forward_and_backward(parameters, state, batch, jax.random.key(0))
        jax.block_until_ready((loss, state, gradients))

    return step, {"package": f"meliad, jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
