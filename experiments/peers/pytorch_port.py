"""A step of block-recurrent-transformer-pytorch, with its fused attention on."""

from importlib.metadata import version

import torch  # pyright: ignore[reportMissingImports]
from block_recurrent_transformer_pytorch import (  # pyright: ignore[reportMissingImports]
    BlockRecurrentTransformer,
)
from child import Size, serve

PACKAGE = "block-recurrent-transformer-pytorch"


def make_model(size: Size):
    """The port's model; what it cannot do, the README of this folder says."""
    model = size["model"]
    layers = model["num_layers"]
    return BlockRecurrentTransformer(
        num_tokens=model["vocab_size"],
        dim=model["model_size"],
        depth=layers,
        dim_head=model["head_size"],
        heads=model["num_heads"],
        ff_mult=model["mlp_size"] // model["model_size"],
        max_seq_len=size["segment_length"],
        block_width=model["window"],
        num_state_vectors=model["num_states"],
        recurrent_layers=tuple(index % layers + 1 for index in model["recurrent_layers"]),
        use_flash_attn=True,
    )


def prepare(size: Size):
    """The step: loss, gradients of all parameters, and the next memories and states."""
    torch.manual_seed(0)
    model = make_model(size)
    # The loss takes one token more: those before it are read, those after the first are targets.
    shape = (size["batch_size"], size["segment_length"] + 1)
    tokens = torch.randint(0, size["model"]["vocab_size"], shape)
    memories, states = [], []

    def step() -> None:
        nonlocal memories, states
        model.zero_grad(set_to_none=True)
        loss, memories, states = model(
            tokens, return_loss=True, xl_memories=memories, states=states
        )
        loss.backward()
        loss.item()

    return step, {"package": f"{PACKAGE} {version(PACKAGE)}, torch {torch.__version__}"}


if __name__ == "__main__":
    serve(prepare)
