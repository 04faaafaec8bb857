"""A step of this library: loss, gradients of all parameters and the next carried state."""

from typing import Any

import jax
from child import Size, serve

from block_recurrent.config import DataConfig, ExperimentConfig, ModelConfig
from block_recurrent.lab.benchmark.timing import matmul_rate, random_batch
from block_recurrent.lab.compile.flops import step_flops
from block_recurrent.system.devices import keep_freed_memory
from block_recurrent.training.build import make_model
from block_recurrent.training.step import segment_loss


def prepare(size: Size):
    """The step, the operations that it needs, and the rate of a large matrix product."""
    config = experiment(size)
    batch = random_batch(config)
    model = make_model(config)
    state = model.initial_state(config.data.batch_size)

    @jax.jit(donate_argnums=1)
    def forward_and_backward(model, state, batch):
        return jax.value_and_grad(segment_loss, has_aux=True)(model, state, batch)

    def step() -> None:
        nonlocal state
        (loss, (_, _, state)), gradients = forward_and_backward(model, state, batch)
        jax.block_until_ready((loss, state, gradients))

    facts = {
        "package": f"block_recurrent, jax {jax.__version__}",
        "step_flops": step_flops(config),
        "matmul_flops": lambda: matmul_rate(rounds=1, dtype=config.model.dtype),
    }
    return step, facts


def experiment(size: Size) -> ExperimentConfig:
    """The configuration that the parent process has sent."""
    model: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in size["model"].items()
    }
    data = DataConfig(batch_size=size["batch_size"], segment_length=size["segment_length"])
    return ExperimentConfig(model=ModelConfig(**model), data=data)


if __name__ == "__main__":
    keep_freed_memory()  # as all programs do
    serve(prepare)
